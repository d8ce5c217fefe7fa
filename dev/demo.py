"""
The demonstration, ``make demo``: a real Airflow runs an example Dag and leaves a video on disk.

Without a key the service is the emulator. What can be set, in the environment or as ``make demo NAME=value``:

    KLING_API_KEY    talk to the real service, which costs money: asks before it does
    KLING_DEMO_YES   1: yes to that, for where nobody can be asked
    KLING_BASE_URL   where the real service is, if not where it usually is
    PROMPT           what the video shows
    PORT             port of Airflow's UI (8080, or a free one if that is taken)
    KEEP             1: keep Airflow running at the end also without a terminal; 0: never keep it
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

import av

from dev.environments import CHECKOUT, NEWEST
from dev.local_airflow import AirflowFailedError, LocalAirflow
from dev.processes import LOOPBACK, GuardedProcess, free_port, inherited_environment, is_free

if TYPE_CHECKING:
    from dev.airflow_api import TaskInstance

DEMO = CHECKOUT / ".demo"
VIDEOS = DEMO / "videos"
EXAMPLES = CHECKOUT / "example_dags"
DAG_ID = "example_kling_text_to_video"
VIDEO_TASK = "make_video"
PAGE = "plugin/kling-videos"
SECONDS = 5
DEFAULT_PROMPT = "A girl dancing on the beach at sunset, cinematic lighting"
USUAL_PORT = 8080

_EMULATOR_START_TIMEOUT = 30.0
_AIRFLOW_START_TIMEOUT = 240.0
_DAG_TIMEOUT = 180.0
_RUN_TIMEOUT = 75 * 60.0  # the operator itself gives up after an hour, and tells why

_WHAT_A_STATE_MEANS = {
    "running": "running",
    "deferred": "deferred: the triggerer waits for the video, no worker is held",
    "success": "done",
    "up_for_retry": "failed, and will be tried again",
    "failed": "failed",
}


class DemoError(Exception):
    """The demonstration cannot go on. The text is for a person and says what to do."""


@dataclass(frozen=True)
class Wishes:
    """What the person who started the demonstration has set."""

    api_key: str
    base_url: str
    yes: bool
    prompt: str
    port: int | None
    keep: bool | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Wishes:
        """
        Read them from environment variables.

        :raises DemoError: a value makes no sense.
        """
        port = environment.get("PORT", "")
        if port and not (port.isdecimal() and 0 < int(port) < 65536):
            raise DemoError(f"PORT={port} is no port number. Give one from 1 to 65535: make demo PORT=8081")
        keep = environment.get("KEEP", "")
        return cls(
            api_key=environment.get("KLING_API_KEY", "").strip(),
            base_url=environment.get("KLING_BASE_URL", "").strip(),
            yes=environment.get("KLING_DEMO_YES") == "1",
            prompt=environment.get("PROMPT", "") or DEFAULT_PROMPT,
            port=int(port) if port else None,
            keep=keep != "0" if keep else None,
        )


class Progress:
    """Prints what happens, with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, what: str, text: str) -> None:
        """Print one line."""
        print(f"  {time.monotonic() - self._began:4.0f} s  {what:12} {text}", flush=True)


def main() -> int:
    """Run the demonstration. Return the exit code."""
    signal.signal(signal.SIGTERM, _end_orderly)
    try:
        with ExitStack() as running:
            _demonstrate(Wishes.from_environment(os.environ), running)
    except (DemoError, AirflowFailedError, TimeoutError) as error:
        print(f"\n{error}\n\nNothing is left running.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Nothing is left running.")
        return 130
    return 0


def _demonstrate(wishes: Wishes, running: ExitStack) -> None:
    port = _port(wishes.port)
    if wishes.api_key:
        _ask_before_spending(wishes)
        print("A real Airflow asks the real service for a video.\n")
    else:
        print("A real Airflow asks an emulated service for a video; nothing is paid.\n")
    progress = Progress()

    if wishes.api_key:
        home, connection, further = DEMO / "service", _connection(wishes), _proxies()
        progress.say("service", wishes.base_url or "the real one")
    else:
        home = DEMO / "emulated"
        connection = _start_emulator(home, running)
        # What is not stored is played from there.
        further = {"AIRFLOW__KLING__MEDIA_HOSTS": json.loads(connection)["host"].removesuffix("/api/v1")}
        progress.say("service", f"the emulator, at {json.loads(connection)['host']}")

    progress.say("Airflow", f"{NEWEST}: starting scheduler, Dag processor, triggerer and API server")
    airflow = running.enter_context(
        LocalAirflow(
            home / "airflow",
            dags=[EXAMPLES],
            connections={"kling_default": connection},
            environment=further,
            port=port,
            start_timeout=_AIRFLOW_START_TIMEOUT,
        )
    )
    progress.say("Airflow", f"runs; its UI is at {airflow.url}")
    conf = {"prompt": wishes.prompt, "seconds": SECONDS, "folder": str(VIDEOS)}
    airflow.api.wait_for_dag(DAG_ID, _DAG_TIMEOUT)
    run_id = airflow.trigger(DAG_ID, conf)
    progress.say("Dag", f"{DAG_ID} started: {SECONDS} seconds of “{wishes.prompt}”")
    run_page = f"{airflow.url}/dags/{DAG_ID}/runs/{quote(run_id)}"

    for task in airflow.api.watch_run(DAG_ID, run_id, _RUN_TIMEOUT):
        if task.state in _WHAT_A_STATE_MEANS:
            progress.say(task.label, _WHAT_A_STATE_MEANS[task.state] + _task_id_of_service(airflow, task))
    if airflow.api.run_state(DAG_ID, run_id) != "success":
        raise DemoError(airflow.why_run_failed(DAG_ID, run_id))

    (stored,) = airflow.api.xcom(DAG_ID, run_id, VIDEO_TASK)["files"]
    video = Path(stored["path"])
    print(f"\nThe video  {video}\n           {_describe(video)}")
    print(f"Its story  {stored['manifest_path']}\nThe run    {run_page}")
    print(f"All videos {airflow.url}/{PAGE}")
    _keep_or_end(wishes.keep)


def _port(wanted: int | None) -> int:
    if wanted is None:
        return USUAL_PORT if is_free(USUAL_PORT) else free_port()
    if not is_free(wanted):
        raise DemoError(
            f"Port {wanted} is taken by another program. Choose another: make demo PORT={free_port()}"
        )
    return wanted


def _ask_before_spending(wishes: Wishes) -> None:
    question = (
        f"This asks the real service for {SECONDS} seconds of video, which costs {_price(wishes.prompt)}."
    )
    if wishes.yes:
        print(question)
    elif not sys.stdin.isatty():
        raise DemoError(
            f"{question}\nNobody can be asked here, so nothing was done. Set KLING_DEMO_YES=1 to agree beforehand,\n"
            "or unset KLING_API_KEY to see the demonstration with the emulator."
        )
    elif input(f"{question} Go on? [y/N] ").strip().lower() not in {"y", "yes"}:
        raise DemoError(
            "Nothing was asked for, nothing is paid. Without KLING_API_KEY the service is an emulator."
        )


def _price(prompt: str) -> str:
    """Estimate what the Dag's video costs, from the Dag itself."""
    os.environ["AIRFLOW_HOME"] = str(DEMO / "service" / "airflow")  # importing Airflow writes there

    from airflow_provider_kling.api.pricing import estimate
    from airflow_provider_kling.api.request import VideoRequest

    spec = importlib.util.spec_from_file_location(DAG_ID, EXAMPLES / f"{DAG_ID}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fields: dict[str, Any] = {name: getattr(module.make_video, name) for name in VideoRequest.model_fields}
    usd = estimate(VideoRequest(**fields | {"prompt": prompt, "duration": SECONDS}))
    return f"about {usd:.2f} USD" if isinstance(usd, Decimal) else "a sum that is not known beforehand"


def _connection(wishes: Wishes) -> str:
    host = {"host": wishes.base_url} if wishes.base_url else {}
    return json.dumps({"conn_type": "kling", "password": wishes.api_key, **host})


def _proxies() -> dict[str, str]:
    """Return the environment's proxies: the real service may be behind one, Airflow's own parts never are."""
    own = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    never = [f"{LOOPBACK},localhost", own.get("NO_PROXY"), own.get("no_proxy")]
    return own | dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(filter(None, never)))


def _start_emulator(home: Path, running: ExitStack) -> str:
    """Start the emulator and wait until it answers. Return the Airflow connection to it, as JSON."""
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    emulator = GuardedProcess(
        "emulator",
        # With a ledger it knows the videos of a demonstration that was interrupted: Airflow will go on asking for them.
        [
            sys.executable,
            "-m",
            "airflow_provider_kling.emulator",
            "--port",
            str(port),
            "--ledger",
            str(home / "ledger"),
        ],
        environment=inherited_environment(),
        directory=home,
        log=home / "emulator.log",
    )
    running.callback(emulator.stop)
    emulator.start()
    deadline = time.monotonic() + _EMULATOR_START_TIMEOUT
    while is_free(port):
        if not emulator.is_running or time.monotonic() > deadline:
            raise DemoError(f"The emulator did not start. The end of {emulator.log}:\n\n{emulator.tail()}")
        time.sleep(0.1)

    from airflow_provider_kling.emulator.settings import DEFAULT_KEY

    return json.dumps(
        {"conn_type": "kling", "password": DEFAULT_KEY, "host": f"http://{LOOPBACK}:{port}/api/v1"}
    )


def _task_id_of_service(airflow: LocalAirflow, task: TaskInstance) -> str:
    if task.task_id != VIDEO_TASK or task.state != "deferred":
        return ""
    return f" (the service's task {airflow.api.xcom(task.dag_id, task.run_id, task.task_id, 'task_id')})"


def _describe(path: Path) -> str:
    """
    Decode a video and say what is in it.

    :raises DemoError: it cannot be played.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = sum(1 for _ in container.decode(stream))
            sound = "with sound" if container.streams.audio else "without sound"
            seconds = (
                float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
            )
            size = f"{stream.width}x{stream.height}"
    except (av.FFmpegError, IndexError, OSError) as error:
        raise DemoError(f"{path} is not a video that can be played: {error}") from error
    if not frames:
        raise DemoError(f"{path} is not a video that can be played: it has no frame.")
    return (
        f"{path.stat().st_size:,} bytes, {seconds:.1f} s, {size}, {sound}; all {frames} frames can be decoded"
    )


def _keep_or_end(keep: bool | None) -> None:
    person = sys.stdin.isatty() and sys.stdout.isatty()
    if not (person if keep is None else keep):
        print(
            "\nEverything is being stopped. To look around in the UI afterwards: make demo KEEP=1", flush=True
        )
        return
    # Being told to end is what is waited for here, and no interruption.
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        if person:
            print("\nAirflow goes on (no login). Press Enter to stop it.", flush=True)
            input()
        else:
            print("\nAirflow goes on (no login) until it gets Ctrl-C or SIGTERM.", flush=True)
            signal.pause()
    print("Everything is being stopped.", flush=True)


def _end_orderly(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
