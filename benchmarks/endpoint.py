"""
The other side of the wire: a TLS server that answers for Kling, for any HTTP job and for dbt Cloud, and counts.

A process of its own, on a processor of its own where there are two, and as little work an answer as possible:
it is not what is measured. Every job takes the same time to be done.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from dev.processes import LOOPBACK

KEY = "sk_benchmark_0123456789abcdef"
ACCOUNT = 1
"""The dbt Cloud account."""
WARM_UP, WARM_UP_SECONDS = "to warm up", 12.0
"""A job with these words is done sooner."""
MEASURED_ON, SERVED_ON = 0, 1
"""Processors of the measured process and of this one."""

_HEAD = "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"


@dataclass(frozen=True)
class Counted:
    """
    What an endpoint saw.

    :param connections: when each TLS connection was opened, seconds of the machine's monotonic clock.
    :param asked: when each job was asked for, the same, by its id.
    """

    connections: Sequence[float]
    asked: Mapping[str, Sequence[float]]

    def queries(self, since: float, until: float) -> int:
        """Return how many there were between two moments."""
        return sum(since <= at < until for times in self.asked.values() for at in times)


class Endpoint:
    """
    A running endpoint.

    :param process: it, with pipes.
    :param port: where it listens on loopback.
    :param certificates: the file of the authority that its certificate is from.
    """

    def __init__(self, process: subprocess.Popen[str], port: int, certificates: str) -> None:
        self._process = process
        self.port = port
        self.certificates = certificates

    @property
    def trust(self) -> dict[str, str]:
        """The environment of a process that trusts its certificate."""
        return {"SSL_CERT_FILE": self.certificates, "REQUESTS_CA_BUNDLE": self.certificates}

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process that waits for its jobs: whom to trust, and a connection of each kind."""
        connections = {
            "kling_default": kling_connection(self.port, self.certificates),
            "http_default": http_connection(self.port),
            "dbt_cloud_default": {
                "conn_type": "dbt_cloud",
                "host": f"{LOOPBACK}:{self.port}",
                "password": KEY,
            },
        }
        return {
            **self.trust,
            "BENCHMARK_URL": f"https://{LOOPBACK}:{self.port}",
            **{f"AIRFLOW_CONN_{name.upper()}": json.dumps(what) for name, what in connections.items()},
        }

    def reset(self) -> None:
        """Forget what was counted."""
        self._ask("reset")

    def counted(self) -> Counted:
        """Return what was counted since the last reset."""
        answer = json.loads(self._ask("count"))
        return Counted(answer["connections"], answer["asked"])

    def _ask(self, what: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("The endpoint ended; what it says is above.")
        return answer


def kling_connection(port: int, certificates: str) -> dict[str, Any]:
    """Return a Kling connection to a port of this machine."""
    return {
        "conn_type": "kling",
        "host": f"https://{LOOPBACK}:{port}/api/v1",
        "password": KEY,
        # Far above what is asked for: what is compared does the same work.
        "extra": {"ca_bundle": certificates, "max_queries_per_second": 100_000},
    }


def http_connection(port: int) -> dict[str, Any]:
    """Return an HTTP connection to a port of this machine."""
    return {"conn_type": "http", "host": LOOPBACK, "port": port, "schema": "https"}


@contextlib.contextmanager
def endpoint(directory: Path, *, job_seconds: float = 86_400.0) -> Iterator[Endpoint]:
    """Start an endpoint whose jobs take this long; it ends with its owner."""
    authority, certificate, key = certificates(directory)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "benchmarks.endpoint", "--job-seconds", str(job_seconds)),
            *("--certificate", str(certificate), "--key", str(key)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Endpoint(process, int(process.stdout.readline()), str(authority))
    finally:
        process.stdin.close()
        process.wait()


def certificates(directory: Path) -> tuple[Path, Path, Path]:
    """Make an authority, and a certificate of loopback with its key, for this run."""
    import trustme  # only the benchmarks' own environment has it

    authority = trustme.CA()
    issued = authority.issue_cert(LOOPBACK, "localhost")
    paths = (directory / "authority.pem", directory / "certificate.pem", directory / "key.pem")
    authority.cert_pem.write_to_path(paths[0])
    issued.cert_chain_pems[0].write_to_path(paths[1])
    issued.private_key_pem.write_to_path(paths[2])
    return paths


def run_on(processor: int) -> None:
    """Keep this process on one processor, where the system can and has several."""
    with contextlib.suppress(AttributeError, OSError):
        if processor in os.sched_getaffinity(0):
            os.sched_setaffinity(0, {processor})


class _Jobs:
    """What the answers are made of."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ids = itertools.count(1)
        self._done_at: dict[str, float] = {}
        self.connections: list[float] = []
        self.asked: dict[str, list[float]] = {}

    def answer(self, method: str, target: str, body: bytes) -> bytes:
        parts = urlsplit(target)
        path = parts.path
        if method == "POST":
            job = f"task-{next(self._ids):06}"
            seconds = WARM_UP_SECONDS if WARM_UP.encode() in body else self.seconds
            self._done_at[job] = time.monotonic() + seconds
            return _answer({"code": 200, "msg": "success", "data": {"taskId": job, "state": "pending"}})
        if path == "/api/v1/video/generations":
            job = parse_qs(parts.query)["task_id"][0]
            data: dict[str, Any] = {"taskId": job, "model": "kling-v3-omni", "createTime": 1_700_000_000_000}
            if self._is_done(job):
                links = [f"https://{LOOPBACK}/results/{job}.mp4"]
                data |= {"state": "completed", "resultUrls": links, "completeTime": 1_700_000_020_000}
            else:
                data["state"] = "processing"
            return _answer({"code": 200, "msg": "success", "data": data})
        if path.startswith("/jobs/"):
            job = path.removeprefix("/jobs/")
            return _answer({"id": job}) if self._is_done(job) else _answer({"id": job}, "404 Not Found")
        if path.startswith("/api/v2/accounts/"):
            job = path.rstrip("/").rpartition("/")[2]
            return _answer(
                {"status": {"code": 200}, "data": {"id": int(job), "status": 10 if self._is_done(job) else 3}}
            )
        return _answer({"code": 404, "msg": "not offered here"}, "404 Not Found")

    def _is_done(self, job: str) -> bool:
        now = time.monotonic()
        self.asked.setdefault(job, []).append(now)
        return now >= self._done_at.setdefault(job, now + self.seconds)

    def reset(self) -> None:
        self.connections.clear()
        self.asked.clear()


class _Connection(asyncio.Protocol):
    def __init__(self, jobs: _Jobs) -> None:
        self._jobs = jobs
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._jobs.connections.append(time.monotonic())

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, rest = self._received.partition(b"\r\n\r\n")
            first, *fields = head.decode("latin-1").split("\r\n")
            length = next(
                (int(line[15:]) for line in fields if line[:15].lower() == "content-length:"),
                0,
            )
            if len(rest) < length:
                return
            body, self._received = rest[:length], rest[length:]
            method, target, _ = first.split(" ", 2)
            self._transport.write(self._jobs.answer(method, target, body))


def _answer(body: Any, status: str = "200 OK") -> bytes:
    content = json.dumps(body).encode()
    return _HEAD.format(status=status, length=len(content)).encode() + content


async def _serve(given: argparse.Namespace) -> None:
    jobs = _Jobs(given.job_seconds)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(given.certificate, given.key)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def told(line: str) -> None:
        if line.strip() == "reset":
            jobs.reset()
            print(flush=True)
        else:
            print(json.dumps({"connections": jobs.connections, "asked": jobs.asked}), flush=True)

    def listen() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(told, line)
        loop.call_soon_threadsafe(ended.set)

    server = await loop.create_server(lambda: _Connection(jobs), LOOPBACK, 0, ssl=tls, backlog=4096)
    threading.Thread(target=listen, daemon=True).start()
    print(server.sockets[0].getsockname()[1], flush=True)
    await ended.wait()
    server.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endpoint", description=__doc__)
    parser.add_argument("--job-seconds", type=float, required=True)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    run_on(SERVED_ON)
    asyncio.run(_serve(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
