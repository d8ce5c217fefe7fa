"""Run the emulator from a command line: ``python -m airflow_provider_kling.emulator``."""

from __future__ import annotations

import argparse
import signal
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_PORT = 8089

_EPILOG = """\
faults, as KIND:NAME=VALUE,NAME=VALUE or as JSON; --fault can be given many times:
  --fault answer:call=query,status=503,rate=0.05        one query in twenty gets a 503
  --fault answer:call=create,status=429,retry_after=3   the first create gets a 429 with Retry-After: 3
  --fault lost_answer:rate=0.01                         one create in a hundred is done, but its answer is lost
  --fault reset:call=create,times=2                     two creates are cut off before a task is made
  --fault fail:prompt=weapon,fail_code=CONTENT_MODERATION,times=always
  --fault drift:shape=task_id+status+videos,times=always
kinds: answer, reset, lost_answer, refuse, cut, stall, slow, drift, fail, latency, no_link, expired_link,
drop, duplicate. What each does and takes: pydoc airflow_provider_kling.emulator.faults

another process asks and sets under /_emulator/:
  curl -s http://127.0.0.1:8089/_emulator/ledger
  curl -s 'http://127.0.0.1:8089/_emulator/paid?prompt=video-17'
  curl -s http://127.0.0.1:8089/_emulator/faults -d '{"kind": "lost_answer"}'
all paths: pydoc airflow_provider_kling.emulator.control
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_kling.emulator",
        description="A stand-in for the Kling Omni-Video service: makes real videos, costs nothing.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="port; 0 for any free one (default: %(default)s)"
    )
    parser.add_argument("--api-key", metavar="KEY", help="the key that it accepts")
    parser.add_argument("--balance", metavar="USD", help="what the account begins with (default: 1000)")
    parser.add_argument(
        "--latency",
        help="how long a video takes: seconds, lognormal (as the service's own), lognormal:MEDIAN:SIGMA, "
        "or never (default: 5)",
    )
    parser.add_argument(
        "--time-scale",
        metavar="FACTOR",
        help="factor on all of the service's times; 0.01 is a hundred times as fast (default: 1)",
    )
    parser.add_argument("--seed", help="makes task ids, latencies and faults by rate repeat themselves")
    parser.add_argument(
        "--scale",
        metavar="FACTOR",
        help="factor on the videos' pixels, 1 for the full 720p or 1080p (default: 0.25)",
    )
    parser.add_argument("--max-running-tasks", metavar="N", help="most tasks at a time (default: no limit)")
    parser.add_argument(
        "--when-full", choices=("reject", "fail"), help="above it: answer 429, or take the task and fail it"
    )
    parser.add_argument("--max-requests-per-second", metavar="N", help="above it: 429 (default: no limit)")
    parser.add_argument("--fault", action="append", default=[], metavar="FAULT", help="see below")
    parser.add_argument(
        "--ledger",
        type=Path,
        metavar="FILE",
        help="keep what was paid in this file; another emulator goes on with it after a kill -9",
    )
    parser.add_argument(
        "--result-host", metavar="NAME", help="host of the links to results (default: localhost on loopback)"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate chain: speak TLS")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key")
    return parser


_ENDING = (signal.SIGINT, signal.SIGTERM)
_SETTINGS = (
    "balance",
    "latency",
    "time_scale",
    "seed",
    "scale",
    "max_running_tasks",
    "when_full",
    "max_requests_per_second",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the emulator until SIGINT or SIGTERM; return the exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if (given.tls_cert is None) is not (given.tls_key is None):
        parser.error("--tls-cert and --tls-key go together")
    # No handlers: one that comes in the moment in which the wait for it begins would be seen after the next one only.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        return _run(parser, given)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from airflow_provider_kling.emulator.faults import Fault
    from airflow_provider_kling.emulator.film import EmulatorExtraMissingError
    from airflow_provider_kling.emulator.journal import JournalError
    from airflow_provider_kling.emulator.server import KlingEmulator
    from airflow_provider_kling.emulator.settings import DEFAULT_KEY, explain

    try:
        emulator = KlingEmulator(
            host=given.host,
            port=given.port,
            api_key=given.api_key or DEFAULT_KEY,
            faults=[Fault.parse(written) for written in given.fault],
            ledger_file=given.ledger,
            result_host=given.result_host,
            tls=_tls(given.tls_cert, given.tls_key),
            **{name: getattr(given, name) for name in _SETTINGS if getattr(given, name) is not None},
        )
        emulator.start()
    except (EmulatorExtraMissingError, JournalError, OSError, ValueError) as error:
        why = explain(error) if isinstance(error, ValidationError) else error
        parser.exit(1, f"The emulator could not be started: {why}\n")
    ((name, uri),) = emulator.connection_env.items()
    sys.stdout.write(
        "The Kling emulator is running; Ctrl-C ends it.\n"
        f"  base URL  {emulator.base_url}\n"
        f"  key       {emulator.api_key}\n"
        f"  ledger    {emulator.control_url}/ledger\n"
        f"  Airflow   export {name}='{uri}'\n"
    )
    sys.stdout.flush()
    try:
        signal.sigwait(_ENDING)
    finally:
        emulator.stop()
    paid = emulator.ledger.paid()
    sys.stdout.write(f"Ended. {len(paid)} videos were paid, {emulator.ledger.paid_usd()} USD.\n")
    return 0


def _tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


if __name__ == "__main__":
    sys.exit(main())
