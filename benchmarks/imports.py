"""
How long Airflow's processes take to import this package, beside the peers' operators.

Every Dag file imports the operators, in every process that reads it; every Airflow process imports the provider info.
Each figure is the fastest of many fresh processes: whatever else the machine does only ever makes an import slower.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from airflow_provider_kling import get_provider_info
from benchmarks.report import Check, Report, figure
from dev.processes import inherited_environment

SDK = "import airflow.sdk"
OURS = "airflow_provider_kling"


def _modules(*kinds: str) -> str:
    info = get_provider_info()
    modules = [name for kind in kinds for entry in info[kind] for name in entry["python-modules"]]
    return "\n".join(f"import {name}" for name in modules)


OPERATORS = {
    "Kling: operators": _modules("operators"),
    "Kling: operators and sensors": _modules("operators", "sensors"),
    "HTTP: operator": "import airflow.providers.http.operators.http",
    "dbt Cloud: operators": "import airflow.providers.dbt.cloud.operators.dbt",
}
PROVIDER_INFO = f"import {OURS}\n{OURS}.get_provider_info()"
MOST_FOR_OPERATORS = 50.0
MOST_FOR_PROVIDER_INFO = 5.0

_PROGRAM = """
import time
{before}
_began = time.perf_counter()
{measured}
print(time.perf_counter() - _began)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.imports", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="fresh processes each (default: %(default)s)")
    given = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    seconds = _measure(
        {name: (SDK, measured) for name, measured in OPERATORS.items()}
        | {"Kling: provider info": ("", PROVIDER_INFO), "airflow.sdk itself": ("", SDK)},
        given.rounds,
    )
    fastest = {name: 1000 * min(each) for name, each in seconds.items()}
    report = Report(
        name="imports",
        title="Imports: milliseconds above what is loaded already, fastest of fresh processes",
        columns=("", "fastest, ms", "median, ms"),
        rows=[
            (name, figure(fastest[name]), figure(1000 * statistics.median(each)))
            for name, each in seconds.items()
        ],
        checks=[
            Check("operators above `airflow.sdk`, ms", fastest["Kling: operators"], MOST_FOR_OPERATORS),
            Check("operators and sensors, ms", fastest["Kling: operators and sensors"], MOST_FOR_OPERATORS),
            Check("provider info, ms", fastest["Kling: provider info"], MOST_FOR_PROVIDER_INFO),
        ],
        figures={"seconds": seconds},
        notes=[
            "Operators: after `import airflow.sdk`. The provider info and `airflow.sdk`: in a bare interpreter."
        ],
    )
    return 0 if report.publish(load) else 1


def _measure(programs: Mapping[str, tuple[str, str]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory(prefix="kling-benchmark-") as home:
        for turn in range(rounds + 1):
            for name, (before, measured) in programs.items():
                spent = _fresh_process(_PROGRAM.format(before=before, measured=measured), home)
                if turn:  # the first one compiled what was not compiled yet
                    seconds[name].append(spent)
    return seconds


def _fresh_process(program: str, home: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=inherited_environment() | {"AIRFLOW_HOME": home},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
