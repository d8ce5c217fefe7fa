"""
How fast a result is stored next to ``curl``, and how much memory a large one takes.

``python -m benchmarks.download [RESULTS.json]`` serves a file of 1 GB on loopback from a process of its own, fetches it
in turns with ``curl`` and with this package's ``ResultStorage.store`` (checked, hashed, synced to disk, with its
manifest), and prints both and their ratio; then it stores one file of 1 GB to local disk and one to an S3-compatible
server (moto), each in a fresh process, and prints by how much the memory of that process grew.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import platform
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

GIGABYTE = 1_000_000_000
TARGET_RATIO = 0.8
TARGET_GROWTH = 64 * 1024 * 1024
"""Bytes of memory that storing one gigabyte may add."""

_S3_CONNECTION = "benchmark_s3"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the figures as JSON where a path is given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.download", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, help="write the figures to this file as JSON")
    parser.add_argument("--size", type=int, default=GIGABYTE, help="bytes of the file (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="how often each fetches it (default: %(default)s)"
    )
    parser.add_argument("--directory", type=Path, help="where to work; twice the size must be free there")
    parser.add_argument("--without-s3", action="store_true", help="leave out the S3-compatible server")
    parser.add_argument("--as", dest="role", choices=("server", "worker"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.role == "server":
        _serve(Path(os.environ["BENCHMARK_FILE"]))
    elif given.role == "worker":
        _work(json.loads(os.environ["BENCHMARK_ORDER"]))
    else:
        with tempfile.TemporaryDirectory(prefix="kling-benchmark-", dir=given.directory) as directory:
            figures = _measure(Path(directory), given.size, given.rounds, with_s3=not given.without_s3)
        if given.results:
            given.results.write_text(json.dumps(figures, indent=2) + "\n")


def _measure(directory: Path, size: int, rounds: int, *, with_s3: bool) -> dict[str, Any]:
    film = directory / "film.mp4"
    _make_film(film, size)
    small = directory / "small.mp4"
    _make_film(small, 1_000_000)
    with _server(film) as url, _server(small) as small_url:
        figures = _speeds(directory, url, small_url, film.stat().st_size, rounds)
        local = str(directory / "stored")
        growth = {"local": _growth(directory, url, small_url, local, {})}
        shutil.rmtree(local)
        if with_s3:
            with _s3() as (bucket, environment):
                growth["s3"] = _growth(directory, url, small_url, bucket, environment)
    for place, grown in growth.items():
        print(f"memory, {size / 1e9:.1f} GB to {place + ':':<6} {grown / 2**20:6.1f} MB more (at most 64)")
    return {
        **figures,
        "file_bytes": size,
        "rss_growth_bytes": growth,
        "python": platform.python_version(),
        "processors": os.cpu_count(),
    }


def _speeds(directory: Path, url: str, small_url: str, size: int, rounds: int) -> dict[str, Any]:
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
    median = {name: statistics.median(each) for name, each in speeds.items()}
    ratio = median["kling"] / median["curl"]
    for name, each in speeds.items():
        turns = " ".join(f"{speed / 1e6:.0f}" for speed in each)
        print(f"{name:>6}: {median[name] / 1e6:5.0f} MB/s (median of {turns})")
    print(f" ratio: {ratio:5.2f} (at least {TARGET_RATIO})")
    return {"bytes_per_second": speeds, "median": median, "ratio": ratio}


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
    main()
