"""
How fast a result is stored next to ``curl``, and how much memory a large one takes.

A file of 1 GB is served on loopback by a process of its own and fetched in turns with ``curl`` and with this package's
``ResultStorage.store`` (checked, hashed, synced to disk, with its manifest). Then one file of 1 GB is stored to local
disk and one to an S3-compatible server (moto), each in a fresh process whose memory is watched.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchmarks.report import Check, Report, figure

GIGABYTE = 1_000_000_000
LEAST_OF_CURL = 0.8
MOST_GROWTH = 64 * 1024 * 1024
"""Bytes of memory that storing one gigabyte may add."""

_S3_CONNECTION = "benchmark_s3"
_PLACES = {"local": "local disk", "s3": "S3 (moto)"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.download", description=__doc__)
    parser.add_argument("--size", type=int, default=GIGABYTE, help="bytes of the file (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="how often each fetches it (default: %(default)s)"
    )
    parser.add_argument("--directory", type=Path, help="where to work; twice the size must be free there")
    parser.add_argument("--as", dest="role", choices=("server", "worker"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.role == "server":
        _serve(Path(os.environ["BENCHMARK_FILE"]))
        return 0
    if given.role == "worker":
        _work(json.loads(os.environ["BENCHMARK_ORDER"]))
        return 0
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="kling-benchmark-", dir=given.directory) as directory:
        speeds, grown = _measure(Path(directory), given.size, given.rounds)
    median = {name: statistics.median(each) for name, each in speeds.items()}
    # A turn's two are neighbours in time: how fast the disk is changes more from turn to turn than between them.
    of_ours = [curl / kling for curl, kling in zip(speeds["curl"], speeds["kling"], strict=True)]
    report = Report(
        name="download",
        title=f"Storing a result of {given.size / 1e9:g} GB, beside curl",
        columns=("", "MB/s, median", *(f"turn {turn}" for turn in range(1, given.rounds + 1))),
        rows=[
            (
                name,
                figure(median[name] / 1e6),
                *(figure(speed / 1e6) for speed in each),
            )
            for name, each in speeds.items()
        ]
        + [("of curl", figure(1 / statistics.median(of_ours)), *(figure(1 / ratio) for ratio in of_ours))],
        checks=[
            Check("curl's throughput, of ours, median turn", statistics.median(of_ours), 1 / LEAST_OF_CURL),
            *(
                Check(f"memory added, to {_PLACES[place]}, MB", more / 2**20, MOST_GROWTH / 2**20)
                for place, more in grown.items()
            ),
        ],
        figures={
            "file_bytes": given.size,
            "bytes_per_second": speeds,
            "rss_growth_bytes": grown,
        },
        notes=[
            (
                "Ours checks the length, reads the film's own data, makes its SHA-256 and syncs it to disk with its "
                "manifest; curl does none of that. The hash is made in a thread of its own: it needs the second "
                "processor."
            )
        ],
    )
    return 0 if report.publish(load) else 1


def _measure(directory: Path, size: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    film = directory / "film.mp4"
    _make_film(film, size)
    small = directory / "small.mp4"
    _make_film(small, 1_000_000)
    with _server(film) as url, _server(small) as small_url:
        speeds = _speeds(directory, url, small_url, film.stat().st_size, rounds)
        local = str(directory / "stored")
        grown = {"local": _growth(directory, url, small_url, local, {})}
        shutil.rmtree(local)
        with _s3() as (bucket, environment):
            grown["s3"] = _growth(directory, url, small_url, bucket, environment)
    return speeds, grown


def _speeds(directory: Path, url: str, small_url: str, size: int, rounds: int) -> dict[str, list[float]]:
    target, stored = directory / "curl.mp4", directory / "stored"
    speeds: dict[str, list[float]] = {"curl": [], "kling": []}
    with _worker(directory, {}) as ask:
        ask(url=small_url, output=str(stored))
        for _ in range(rounds):
            # The turns are short and close together, so that both meet the same machine.
            started = time.perf_counter()
            subprocess.run(["curl", "--silent", "--fail", "--output", str(target), url], check=True)
            speeds["curl"].append(size / (time.perf_counter() - started))
            target.unlink()
            os.sync()
            speeds["kling"].append(size / ask(url=url, output=str(stored))["seconds"])
            shutil.rmtree(stored)
            os.sync()
    return speeds


def _growth(directory: Path, url: str, small_url: str, output: str, environment: Mapping[str, str]) -> int:
    with _worker(directory, environment) as ask:
        ask(url=small_url, output=output)  # what is loaded for the first file is no cost of the large one
        return int(ask(url=url, output=output)["grown"])


@contextlib.contextmanager
def _worker(directory: Path, environment: Mapping[str, str]) -> Iterator[Any]:
    """Start a process that stores what it is asked to, one order after the other."""
    order = json.dumps({"kling_host": "http://127.0.0.1:9"})
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.download", "--as", "worker"],
        env={
            **os.environ,
            **environment,
            "AIRFLOW_HOME": str(directory / "airflow"),
            "BENCHMARK_ORDER": order,
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(**what: str) -> Any:
        process.stdin.write(json.dumps(what) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise SystemExit("The worker ended without an answer; what it says is above.")
        return json.loads(answer)

    try:
        yield ask
    finally:
        process.stdin.close()
        process.wait()


def _work(order: Mapping[str, str]) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # Airflow logs to it
    os.environ["AIRFLOW_CONN_KLING_DEFAULT"] = json.dumps(
        {"conn_type": "kling", "host": order["kling_host"], "password": "sk_benchmark"}
    )
    from airflow_provider_kling.api.task import TaskState, VideoTask
    from airflow_provider_kling.hooks.kling import KlingHook
    from airflow_provider_kling.output_path import Coordinates, OutputPath
    from airflow_provider_kling.storage import ResultStorage

    for number, line in enumerate(sys.stdin):
        asked = json.loads(line)
        task = VideoTask(task_id=f"task-{number}", state=TaskState.COMPLETED, result_urls=(asked["url"],))
        log = logging.getLogger("benchmark")
        storage = ResultStorage(
            KlingHook(), OutputPath(asked["output"]), Coordinates("dag", "run", "task"), log=log
        )
        before = _reset_peak()
        started = time.perf_counter()
        [file] = storage.store(task)
        seconds = time.perf_counter() - started
        assert file.duration_seconds
        answer = {"seconds": seconds, "grown": _status("VmHWM") - before, "file": file.to_dict()}
        print(json.dumps(answer), file=answers, flush=True)


def _reset_peak() -> int:
    """Let the kernel note the peak of this process' memory from here on; return how much it has now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def _make_film(path: Path, size: int) -> None:
    """Write a real mp4 of one second, made large by a box that players skip."""
    import av
    from av.video.frame import VideoFrame

    film = io.BytesIO()
    with av.open(film, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 320, 240
        for _ in range(25):
            container.mux(stream.encode(VideoFrame(320, 240, "yuv420p")))
        container.mux(stream.encode(None))
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        file.write(film.getvalue())
        left = size - film.tell()
        file.write(struct.pack(">I4sQ", 1, b"free", left))
        left -= 16
        while left > 0:
            left -= file.write(block[: min(left, len(block))])


@contextlib.contextmanager
def _server(path: Path) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.download", "--as", "server"],
        env={**os.environ, "BENCHMARK_FILE": str(path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/film.mp4"
    finally:
        process.terminate()
        process.wait()


def _serve(path: Path) -> None:
    size = path.stat().st_size
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as listening, path.open("rb") as file:
        print(listening.getsockname()[1], flush=True)
        while True:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(ConnectionError):
                asked = b""
                while b"\r\n\r\n" not in asked and (more := connection.recv(65536)):
                    asked += more
                connection.sendall(head.encode())
                file.seek(0)
                connection.sendfile(file)


@contextlib.contextmanager
def _s3() -> Iterator[tuple[str, dict[str, str]]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-c", f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(endpoint)
        import boto3

        boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
        ).create_bucket(Bucket="videos")
        connection = {
            "conn_type": "aws",
            "login": "testing",
            "password": "testing",
            "extra": {"endpoint_url": endpoint, "region_name": "us-east-1"},
        }
        yield (
            f"s3://{_S3_CONNECTION}@videos/stored",
            {f"AIRFLOW_CONN_{_S3_CONNECTION.upper()}": json.dumps(connection)},
        )
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), urlopen(f"{url}/moto-api/"):
            return
        time.sleep(0.2)
    raise SystemExit(f"The S3-compatible server does not answer at {url}.")


if __name__ == "__main__":
    sys.exit(main())
