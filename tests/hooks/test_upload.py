"""Uploads: sent as they are read, named by their content, and clear about a file that cannot be read."""

from __future__ import annotations

import hashlib
import io
import random
import tracemalloc
from collections.abc import Callable, Iterator
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_kling.api.errors import Paid, ServiceUnavailableError
from airflow_provider_kling.hooks import kling, upload
from airflow_provider_kling.hooks.kling import UPLOAD_TRIES, KlingHook
from airflow_provider_kling.hooks.upload import (
    BLOCK_BYTES,
    FileChangedError,
    FileUnavailableError,
    UnusableFileError,
    UploadBody,
    error_of_file,
    open_file,
)

from ..media import image_bytes
from .conftest import Clock, Connect
from .loopback import Answer, Fault, Loopback

TAKEN = Answer(body={"code": 200, "data": {"publicUrl": "https://r2.example/first.png"}})
PNG = image_bytes()
JPG = image_bytes(form="jpg")


@pytest.fixture
def hook(connect: Connect) -> Iterator[Callable[[Loopback], KlingHook]]:
    made: list[KlingHook] = []

    def make(server: Loopback) -> KlingHook:
        connect(server.url)
        made.append(KlingHook())
        return made[-1]

    yield make
    for each in made:
        each.close()


def part_of(content_type: str, body: bytes) -> tuple[str, str, str, bytes]:
    """Return field, file name, media type and content of the one file in a multipart body."""
    message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    [part] = message.iter_parts()  # type: ignore[attr-defined]
    field = part.get_param("name", header="content-disposition")
    return field, part.get_filename(), part.get_content_type(), part.get_payload(decode=True)


@pytest.mark.parametrize("size", [1, 100, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES])
@pytest.mark.parametrize("step", [16_384, 10 * BLOCK_BYTES])
def test_a_body_is_one_whole_part_of_the_promised_length(size: int, step: int) -> None:
    content = random.Random(size).randbytes(size)
    body = UploadBody(io.BytesIO(content), "x.bin")

    sent = b"".join(iter(lambda: body.read(step), b""))

    assert len(sent) == len(body)
    assert part_of(body.content_type, sent) == ("file", "x.bin", "application/octet-stream", content)
    assert body.sha256 == hashlib.sha256(content).hexdigest()


def test_an_empty_file_is_a_whole_part_too() -> None:
    body = UploadBody(io.BytesIO(), "x.png")
    sent = b"".join(body)
    assert len(sent) == len(body)
    assert part_of(body.content_type, sent)[3] == b""


def test_a_body_can_be_sent_again() -> None:
    body = UploadBody(io.BytesIO(PNG), "x.png")
    first = b"".join(body)
    digest = body.sha256
    body.rewind()
    assert not body.was_read
    body.read(10)
    body.rewind()
    assert (b"".join(body), body.sha256) == (first, digest)


@pytest.mark.parametrize(
    ("content", "name", "sent_as", "media_type"),
    [
        (PNG, "cat.png", "cat.png", "image/png"),
        (PNG, "cat.PNG", "cat.PNG", "image/png"),
        (PNG, "cat", "cat.png", "image/png"),
        (PNG, "cat.jpg", "cat.png", "image/png"),
        (JPG, "cat.jpeg", "cat.jpeg", "image/jpeg"),
        (JPG, "cat.tmp", "cat.jpg", "image/jpeg"),
        (b"\0\0\0\x14ftypqt  ", "clip.mp4", "clip.mov", "video/quicktime"),
        (b"\0\0\0\x18ftypmp42", "clip.mp4", "clip.mp4", "video/mp4"),
    ],
)
def test_a_file_is_called_what_its_content_is(
    content: bytes, name: str, sent_as: str, media_type: str
) -> None:
    body = UploadBody(io.BytesIO(content), name)
    assert part_of(body.content_type, b"".join(body))[1:3] == (sent_as, media_type)


def test_a_name_cannot_break_out_of_its_header() -> None:
    body = UploadBody(io.BytesIO(PNG), 'a"; name="other"\r\nX: y\r\n\r\n.png')
    sent = b"".join(body)
    assert part_of(body.content_type, sent)[0] == "file"
    assert part_of(body.content_type, sent)[3] == PNG


def test_a_large_file_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with path.open("wb") as file:
        file.write(b"\0\0\0\x18ftypmp42")
        file.truncate(200 * 1024 * 1024)
    tracemalloc.start()
    try:
        with open_file(path) as file:
            body = UploadBody(file, "clip.mp4")
            total = sum(len(block) for block in body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == len(body) > 200 * 1024 * 1024
    assert peak < 8 * BLOCK_BYTES


def test_a_file_goes_out_in_pieces_and_arrives_whole(
    hook: Callable[[Loopback], KlingHook], tmp_path: Path
) -> None:
    content = PNG + random.Random(1).randbytes(3 * BLOCK_BYTES)
    (tmp_path / "Kätzchen eins").write_bytes(content)
    with Loopback(TAKEN) as service:
        url = hook(service).upload_file(
            tmp_path / "Kätzchen eins", sha256=hashlib.sha256(content).hexdigest()
        )
    assert url == "https://r2.example/first.png"
    [post] = service.received
    assert "transfer-encoding" not in post.headers
    assert part_of(post.headers["content-type"], post.body)[3] == content


def test_a_file_with_another_checksum_than_expected_is_told(
    hook: Callable[[Loopback], KlingHook], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    with Loopback(TAKEN) as service, pytest.raises(FileChangedError, match=r"a\.png"):
        hook(service).upload_file(tmp_path / "a.png", sha256="0" * 64)


class Ending(io.BytesIO):
    """A file whose storage fails in the middle."""

    def __init__(self, content: bytes, error: Exception | None) -> None:
        super().__init__(content)
        self.error = error

    def read(self, size: int | None = -1, /) -> bytes:
        if size != 12 and self.tell() >= BLOCK_BYTES:
            if self.error is not None:
                raise self.error
            return b""
        return super().read(size)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionResetError("storage is gone"), "storage is gone"),
        (RuntimeError("odd storage"), "odd storage"),
        (None, "become shorter"),
    ],
)
def test_trouble_with_the_file_is_not_blamed_on_the_service(
    hook: Callable[[Loopback], KlingHook],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    told: str,
) -> None:
    file = Ending(PNG + bytes(2 * BLOCK_BYTES), error)
    monkeypatch.setattr(upload, "_open", lambda _: file)
    with Loopback(TAKEN) as service, pytest.raises(FileUnavailableError, match=told) as raised:
        hook(service).upload_file("s3://bucket/a.png")
    assert "s3://bucket/a.png" in str(raised.value)
    assert (raised.value.retryable, raised.value.paid) == (True, Paid.NO)
    assert clock.naps == []


def test_an_upload_is_tried_a_bounded_number_of_times(
    hook: Callable[[Loopback], KlingHook], clock: Clock, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    with Loopback(Fault.RESET) as service:
        with pytest.raises(ServiceUnavailableError, match="nothing was billed"):
            hook(service).upload_file(tmp_path / "a.png")
        assert len(service.received) == UPLOAD_TRIES
    with Loopback(Fault.CLOSED, Answer(503, b""), TAKEN) as service:
        assert hook(service).upload_file(tmp_path / "a.png")
        assert [part_of(post.headers["content-type"], post.body)[3] for post in service.received] == [PNG] * 3


def test_a_service_that_asks_for_a_long_pause_is_not_waited_for(
    hook: Callable[[Loopback], KlingHook], clock: Clock, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    with Loopback(Answer(429, {"msg": "slow down"}, {"Retry-After": "3600"})) as service:
        with pytest.raises(kling.RateLimitedError) as raised:
            hook(service).upload_file(tmp_path / "a.png")
        assert len(service.received) == 1
    assert raised.value.retry_after == 3600
    assert clock.naps == []


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (FileNotFoundError(2, "No such file"), UnusableFileError, "is not there"),
        (PermissionError(13, "Permission denied"), UnusableFileError, "may not be read: Permission denied"),
        (PermissionError("Forbidden"), UnusableFileError, "may not be read: Forbidden"),
        (OSError(5, "Input/output error"), FileUnavailableError, "could not be read: Input/output error"),
        (TimeoutError(), FileUnavailableError, "could not be read: TimeoutError"),
    ],
)
def test_each_trouble_with_a_file_is_told_as_what_it_is(error: Any, kind: type[Exception], told: str) -> None:
    made = error_of_file("s3://bucket/a.png", error)
    assert type(made) is kind
    assert told in str(made)
    assert made.paid is Paid.NO


@pytest.mark.parametrize(
    "path", ["/nowhere/a.png", "file:///nowhere/a.png", "/", "~nobody-here/a.png", "nosuch://b/k"]
)
def test_a_file_that_cannot_be_had_is_told_before_the_service_is_asked(
    hook: Callable[[Loopback], KlingHook], path: str
) -> None:
    with Loopback(TAKEN) as service:
        with pytest.raises(UnusableFileError) as raised:
            hook(service).upload_file(path)
        assert not service.received
    assert path in str(raised.value)
    assert not raised.value.retryable
