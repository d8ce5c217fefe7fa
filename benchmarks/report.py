"""How benchmarks tell what they found: one table on the screen, one JSON file, one section of the README."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Check:
    """
    A figure that has to hold.

    :param what: what it is, with its unit.
    :param value: what was measured.
    :param at_most: the most that it may be.
    """

    what: str
    value: float
    at_most: float

    @property
    def holds(self) -> bool:
        """Whether it does; what is no number does not."""
        return self.value <= self.at_most


@dataclass(frozen=True)
class Report:
    """
    What one benchmark found.

    :param name: that of its module.
    :param title: what was measured, in a line.
    :param columns: the heads of the table.
    :param rows: its cells.
    :param checks: the figures that have to hold.
    :param figures: everything that was measured, as plain JSON.
    :param notes: what one has to know to read the table.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    checks: Sequence[Check]
    figures: Any
    notes: Sequence[str] = field(default_factory=tuple)

    def publish(self, load_before: float, directory: Path = RESULTS) -> bool:
        """
        Print it and write it to ``<directory>/<name>.json``.

        :param load_before: the machine's load average when the benchmark began: what is high disturbs the figures.
        :return: whether all checks hold.
        """
        machine = describe_machine() | {"load_before": round(load_before, 2)}
        written = asdict(self) | {
            "checks": [asdict(check) | {"holds": check.holds} for check in self.checks],
            "machine": machine,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{self.name}.json").write_text(json.dumps(written, indent=2) + "\n")
        print(section(written), flush=True)
        return all(check.holds for check in self.checks)


def section(written: dict[str, Any]) -> str:
    """Return a report, as it stands in its JSON file, as Markdown."""
    lines = [f"### {written['title']}", "", *table(written["columns"], written["rows"]), ""]
    if written["checks"]:
        checks = [
            [
                check["what"],
                figure(check["value"]),
                f"≤ {figure(check['at_most'])}",
                "yes" if check["holds"] else "**no**",
            ]
            for check in written["checks"]
        ]
        lines += [*table(("must hold", "measured", "limit", "holds"), checks), ""]
    lines += [f"{note}\n" for note in written["notes"]]
    machine = written["machine"]
    lines.append(
        f"_`make bench ONLY={written['name']}`, {written['at']}, load average before: {machine['load_before']}._\n"
    )
    return "\n".join(lines)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table that is also readable as it stands: numbers to the right."""
    widths = [max(len(row[at]) for row in [columns, *rows]) for at in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        first, *others = [
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join([first, *others])} |"

    rule = [f"{'-' * (width - 1)}{':' if at else '-'}" for at, width in enumerate(widths)]
    return [line(columns), line(rule), *(line(row) for row in rows)]


def figure(value: float) -> str:
    """Write a number with about three digits that say something."""
    if not math.isfinite(value):
        return "-"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def describe_machine() -> dict[str, Any]:
    """Say what the figures were measured on."""
    return {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
