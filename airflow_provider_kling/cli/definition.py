"""
What can be typed, for both ways to type it.

Each ``airflow`` command imports this module, so it loads nothing but what ``argparse`` needs.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.cli.cli_config import CLICommand

DESCRIPTION = "Make videos with Kling Omni-Video, and know what they cost"
_DEFAULT_TIMEOUT = 3600
_DEFAULT_POLL_INTERVAL = 10


@dataclass(frozen=True)
class Option:
    """
    One argument of a command.

    :param flags: how it is written; a name without dashes takes its place in the order.
    :param settings: further arguments of ``ArgumentParser.add_argument``.
    """

    flags: tuple[str, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Command:
    """
    One command.

    :param name: what is typed.
    :param summary: what it does, in a line.
    :param options: what it takes.
    :param description: what it does, at length.
    """

    name: str
    summary: str
    options: tuple[Option, ...]
    description: str

    def __call__(self, given: argparse.Namespace) -> None:
        """Run it for ``airflow kling``, and end the process with its exit status."""
        from airflow_provider_kling.cli.commands import run

        sys.exit(run(self.name, given, program="airflow kling"))

    @property
    def __name__(self) -> str:
        """Airflow asks a command's function for its name."""
        return self.name


def _option(*flags: str, **settings: Any) -> Option:
    return Option(flags, settings)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _place(text: str) -> str:
    """Return a file's place as requests take it: they take no name alone, which could be Base64."""
    try:
        is_file = Path(text).is_file()
    except (OSError, ValueError):  # such as for Base64, which is too long for a name
        return text
    return str(Path(text).absolute()) if is_file else text


def _reference(name: str, **more: str) -> Callable[[str], dict[str, str]]:
    def reference(text: str) -> dict[str, str]:
        return {name: _place(text), **more}

    return reference


def _shot(text: str) -> dict[str, str]:
    seconds, colon, prompt = text.partition(":")
    if not colon or not seconds.strip().isdecimal() or not prompt.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not SECONDS:PROMPT, such as '3:a red kite rises'")
    return {"duration": seconds.strip(), "prompt": prompt.strip()}


_CONN_ID = _option(
    "--conn-id",
    metavar="ID",
    help="id of the Airflow connection of type kling; kling_default where it is left out",
)
_JSON = _option("--json", action="store_true", help="print JSON")
_TASK_ID = _option("task_id", metavar="TASK_ID", help="the service's task id")
_TIMEOUT = _option(
    "--timeout",
    type=_seconds,
    default=_DEFAULT_TIMEOUT,
    metavar="SECONDS",
    help=f"how long to wait for the video; {_DEFAULT_TIMEOUT} where it is left out",
)
_POLL_INTERVAL = _option(
    "--poll-interval",
    type=_seconds,
    default=_DEFAULT_POLL_INTERVAL,
    metavar="SECONDS",
    help=f"time between two queries; {_DEFAULT_POLL_INTERVAL} where it is left out",
)
_OUTPUT_CONN_ID = _option(
    "--output-conn-id", metavar="ID", help="id of the Airflow connection to the storage"
)
_MAX_COST = _option("--max-cost-usd", metavar="USD", help="the most that it may cost by the estimate")
_OUTPUT_PATH_HELP = (
    "where the video is stored: a directory or a file's name, as a path or a URI of object storage; "
    "{kling_task_id}, {index} and {ext} are filled in"
)

REQUEST_OPTIONS = (
    _option(
        "--request",
        metavar="JSON",
        help=(
            "the request as JSON: an object of request fields, or a prompt; a file's name, - for standard input, or "
            "the JSON itself. Other flags are laid over it"
        ),
    ),
    _option("--prompt", metavar="TEXT", help="what the video shows"),
    _option("--model", metavar="ID", help="kling-v3-omni, the default, or kling-video-o1"),
    _option("--mode", metavar="MODE", help="std for 720p, the default, or pro for 1080p"),
    _option("--duration", metavar="SECONDS", help="length of the video; 5 where it is left out"),
    _option("--aspect-ratio", metavar="RATIO", help="16:9, 9:16 or 1:1"),
    _option("--sound", action=argparse.BooleanOptionalAction, default=None, help="whether it has sound"),
    _option(
        "--image",
        dest="image_list",
        action="append",
        type=_reference("image_url"),
        metavar="PLACE",
        help="reference image: URL, file or URI of object storage; can be given many times",
    ),
    _option(
        "--first-frame",
        dest="image_list",
        action="append",
        type=_reference("image_url", type="first_frame"),
        metavar="PLACE",
        help="image with which the video begins",
    ),
    _option(
        "--end-frame",
        dest="image_list",
        action="append",
        type=_reference("image_url", type="end_frame"),
        metavar="PLACE",
        help="image with which the video ends",
    ),
    _option(
        "--element",
        dest="element_list",
        action="append",
        metavar="ID",
        help="id of a registered subject; can be given many times",
    ),
    _option(
        "--base-video",
        dest="video_list",
        action="append",
        type=_reference("video_url", refer_type="base"),
        metavar="PLACE",
        help="video that is edited: URL, file or URI of object storage",
    ),
    _option(
        "--feature-video",
        dest="video_list",
        action="append",
        type=_reference("video_url", refer_type="feature"),
        metavar="PLACE",
        help="video whose style or camera is taken over",
    ),
    _option(
        "--keep-original-sound",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether the reference video's own sound is kept",
    ),
    _option(
        "--shot",
        dest="multi_prompt",
        action="append",
        type=_shot,
        metavar="SECONDS:PROMPT",
        help="one shot of a storyboard; can be given many times",
    ),
    _option(
        "--shot-type",
        metavar="TYPE",
        help="customize for the given shots, or intelligence to let the service cut the video",
    ),
    _option(
        "--watermark",
        dest="watermark_info",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether the service draws its watermark",
    ),
    _option("--callback-url", metavar="URL", help="where the service posts the task when it is over"),
    _option("--extra-body", metavar="JSON", help="object of further fields, sent as given"),
)
"""Flags for the fields of a request; each one's ``dest`` is the field's name."""

COMMANDS = (
    Command(
        "check",
        "See whether the connection works",
        (
            _CONN_ID,
            _option(
                "--callbacks",
                action="store_true",
                help="see too whether callbacks reach Airflow's API server, at [kling] callback_base_url",
            ),
        ),
        "See whether the connection works: whether the service is there and takes the key. Nothing is spent.",
    ),
    Command(
        "estimate",
        "Tell what a request would cost",
        (*REQUEST_OPTIONS, _MAX_COST, _CONN_ID, _JSON),
        "Check a request and tell what it would cost. Nothing is sent. A JSON list of requests gives their sum; flags "
        "are laid over each of them. With --max-cost-usd, what costs more ends with exit status 1.",
    ),
    Command(
        "generate",
        "Make a video",
        (
            *REQUEST_OPTIONS,
            _MAX_COST,
            _option(
                "--check-balance", action="store_true", help="ask first whether the account holds enough"
            ),
            _option("-y", "--yes", action="store_true", help="spend without asking"),
            _option("--output-path", metavar="PATH", help=_OUTPUT_PATH_HELP),
            _OUTPUT_CONN_ID,
            _TIMEOUT,
            _POLL_INTERVAL,
            _CONN_ID,
            _JSON,
        ),
        "Check a request, tell what it costs, ask whether to spend that, make the video and wait for it. Its path or "
        "link is printed. The service has no cancel: Ctrl-C ends the wait, not the video.",
    ),
    Command(
        "status",
        "Tell how a video is getting on",
        (_TASK_ID, _CONN_ID, _JSON),
        "Ask the service for a task and tell what it says.",
    ),
    Command(
        "download",
        "Store a video that was asked for before",
        (
            _TASK_ID,
            _option("--output-path", metavar="PATH", required=True, help=_OUTPUT_PATH_HELP),
            _OUTPUT_CONN_ID,
            _TIMEOUT,
            _POLL_INTERVAL,
            _CONN_ID,
            _JSON,
        ),
        "Store the video of a task, after waiting for it where it is not made yet. That costs nothing. What is stored "
        "already and matches its manifest is not fetched again.",
    ),
)


def parser(program: str) -> argparse.ArgumentParser:
    """
    Return what reads the command line of ``python -m``.

    :param program: how to call it.
    """
    top = argparse.ArgumentParser(prog=program, description=f"{DESCRIPTION}.")
    commands = top.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    for command in COMMANDS:
        one = commands.add_parser(command.name, help=command.summary, description=command.description)
        for option in command.options:
            one.add_argument(*option.flags, **option.settings)
    return top


def airflow_commands() -> Sequence[CLICommand]:
    """Return the commands in Airflow's form, for ``airflow kling``."""
    from airflow.cli import cli_config

    argument: Any = cli_config.Arg  # it has no types

    return [
        cli_config.GroupCommand(
            name="kling",
            help=DESCRIPTION,
            subcommands=[
                cli_config.ActionCommand(
                    name=command.name,
                    help=command.summary,
                    description=command.description,
                    func=command,
                    args=[argument(flags=option.flags, **option.settings) for option in command.options],
                )
                for command in COMMANDS
            ],
        )
    ]
