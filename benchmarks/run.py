"""
Run the benchmarks one after the other, each in a process of its own, and say what holds.

    python -m benchmarks.run                 all of them
    python -m benchmarks.run queries waiting some of them
    python -m benchmarks.run --readme        only write the last tables into benchmarks/README.md

Each writes ``benchmarks/results/<name>.json`` when it is done: after an interruption name those that are missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, figure, section, table

BENCHMARKS = {
    "simulation": "which schedule of queries suits the service's latency",
    "imports": "importing the operators, and the provider info",
    "download": "storing a result of 1 GB, beside curl",
    "queries": "CPU a query in the triggerer, beside the peers and the bare loop",
    "waiting": "ten thousand videos in one process, and growth to there",
    "connections": "connections opened in ten minutes",
    "whole_airflow": "CPU of a whole Airflow a video, beside HTTP's operator and sensor",
    "reaction": "from a video's completion to the success of its task",
    "page": "the page with a thousand videos, beside Airflow's own list of XComs",
}
README = Path(__file__).parent / "README.md"
_BEGIN, _END = "<!-- tables: begin -->", "<!-- tables: end -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is named; return 1 where one failed or something does not hold."""
    listed = "\n".join(f"  {name:<14} {what}" for name, what in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        epilog=f"benchmarks:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="BENCHMARK", help="all of them where none is named")
    parser.add_argument("--readme", action="store_true", help="only write the last tables into the README")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if given.readme:
        write_readme(README, RESULTS)
        return 0
    outcomes = {}
    for name in given.names or BENCHMARKS:
        print(f"== {name}: {BENCHMARKS[name]}", flush=True)
        began = time.monotonic()
        # Results of an earlier run must not pass for this one's.
        (RESULTS / f"{name}.json").unlink(missing_ok=True)
        status = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode
        outcomes[name] = status
        print(f"({time.monotonic() - began:.0f} s)\n", flush=True)
    print(*summary(RESULTS, outcomes), sep="\n", flush=True)
    return 1 if any(outcomes.values()) else 0


def summary(results: Path, outcomes: dict[str, int]) -> list[str]:
    """Return all checks of the benchmarks that ran as the lines of one table."""
    rows: list[tuple[str, ...]] = []
    for name, status in outcomes.items():
        written = _read(results / f"{name}.json")
        if written is None:
            rows.append((name, f"failed with exit status {status}", "", "", "**no**"))
            continue
        rows += [
            (
                name,
                check["what"],
                figure(check["value"]),
                f"≤ {figure(check['at_most'])}",
                "yes" if check["holds"] else "**no**",
            )
            for check in written["checks"]
        ]
    return table(("benchmark", "must hold", "measured", "limit", "holds"), rows)


def write_readme(readme: Path, results: Path) -> None:
    """
    Put the tables of the last runs between the README's marks.

    :raises SystemExit: it has no such marks, or there are no results.
    """
    written = [found for name in BENCHMARKS if (found := _read(results / f"{name}.json"))]
    text = readme.read_text()
    if not written:
        raise SystemExit("There are no results yet: run `make bench`.")
    if _BEGIN not in text or _END not in text:
        raise SystemExit(f"{readme} lacks the lines {_BEGIN} and {_END}, between which the tables go.")
    machines = list(dict.fromkeys(_machine(found["machine"]) for found in written))
    tables = "\n".join([*(f"{machine}\n" for machine in machines), *(section(found) for found in written)])
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2]
    readme.write_text(f"{before}{_BEGIN}\n\n{tables}\n{_END}{after}")


def _machine(machine: dict[str, Any]) -> str:
    return (
        f"Machine: {machine['processors']} x {machine['processor']}, "
        f"{machine['memory_bytes'] / 2**30:.0f} GB, {machine['system']}, Python {machine['python']}."
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted; name the benchmarks that are missing to run only these", file=sys.stderr)
        sys.exit(130)
