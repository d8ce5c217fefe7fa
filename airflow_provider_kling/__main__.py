"""The command line: ``python -m airflow_provider_kling``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from airflow_provider_kling.cli.definition import parser

if TYPE_CHECKING:
    from collections.abc import Sequence

_PROGRAM = "python -m airflow_provider_kling"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    given = parser(_PROGRAM).parse_args(arguments)

    from airflow_provider_kling.cli.commands import run

    return run(given.subcommand, given, program=_PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
