"""References that are files: looked at before money, uploaded once each, and the same thing in every attempt."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from airflow_provider_kling.api.errors import InvalidRequestError, KlingError, Paid, RateLimitedError
from airflow_provider_kling.api.media import ImageFacts, MediaLibraryMissingError, VideoFacts
from airflow_provider_kling.api.request import MAX_IMAGE_BYTES, Fault, VideoRequest
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.hooks.upload import FileChangedError, FileUnavailableError
from airflow_provider_kling.references import References

from .hooks.loopback import Answer, Loopback
from .media import draw_image, draw_video, image_bytes
from .s3 import S3Server, s3_endpoint, s3_server

__all__ = ["s3_endpoint", "s3_server"]

LOG = logging.getLogger("airflow.task")
ELSEWHERE = "https://example.com/a.png"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return draw_video(tmp_path / "clip.mp4", seconds=4.5)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return draw_image(tmp_path / "picture.png")


@pytest.fixture
def public_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to a service on the internet, which nothing here may call."""
    connection = {"conn_type": "kling", "password": "sk_test", "host": "https://api.example.com/v1"}
    monkeypatch.setenv("AIRFLOW_CONN_KLING_DEFAULT", json.dumps(connection))


def references(**fields: Any) -> References:
    return References(KlingHook(), VideoRequest(prompt="a kite", **fields), LOG)


def faults_of(**fields: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as raised:
        references(**fields).check()
    assert raised.value.paid is Paid.NO
    assert not raised.value.retryable
    return {fault.field: fault.allowed for fault in raised.value.faults}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Uploading


def test_files_are_uploaded_and_the_service_makes_a_video_of_them(
    kling_emulator: KlingEmulator, picture: Path, clip: Path
) -> None:
    request = references(
        image_list=[str(picture)], video_list=[{"video_url": clip, "refer_type": "feature"}]
    ).upload()

    hook = KlingHook()
    task = hook.wait(hook.submit(request).task_id, poll_interval=0.05)
    assert task.video_url
    assert len(kling_emulator.ledger.requests("upload")) == 2
    for url, path in (
        ((request.image_list or ())[0].image_url, picture),
        ((request.video_list or ())[0].video_url, clip),
    ):
        assert requests.get(url, timeout=10).content == path.read_bytes()


def test_a_file_is_uploaded_once_however_often_it_is_named(
    kling_emulator: KlingEmulator, picture: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.png"
    shutil.copy(picture, copy)
    other = draw_image(tmp_path / "other.png", seed=7)
    files = references(image_list=[picture, f"file://{picture}", copy, other, picture, ELSEWHERE])

    urls = [image.image_url for image in files.upload().image_list or ()]

    assert len(kling_emulator.ledger.requests("upload")) == 2
    assert urls[0] == urls[1] == urls[2] == urls[4] != urls[3]
    assert urls[5] == ELSEWHERE
    files.upload()
    assert len(kling_emulator.ledger.requests("upload")) == 2


def test_what_was_uploaded_can_be_taken_up_while_the_service_keeps_it(
    kling_emulator: KlingEmulator, picture: Path
) -> None:
    first = references(image_list=[str(picture)])
    request = first.upload()
    another_process = references(image_list=[str(picture)])
    another_process.take_up(first.uploads)
    assert another_process.upload() == request
    assert another_process.uploads == first.uploads
    assert len(kling_emulator.ledger.requests("upload")) == 1

    ((digest, (url, at)),) = first.uploads.items()
    much_later = references(image_list=[str(picture)])
    much_later.take_up({digest: (url, at - 7 * 24 * 3600)})
    assert much_later.upload() != request
    assert len(kling_emulator.ledger.requests("upload")) == 2

    draw_image(picture, seed=1)
    changed = references(image_list=[str(picture)])
    changed.take_up(first.uploads)
    assert changed.upload() != request
    assert len(kling_emulator.ledger.requests("upload")) == 3


@pytest.mark.parametrize(
    "url",
    [
        "https://f.example/a.png?signature=x",
        "https://user:word@f.example/a.png",
        "https://f.example/" + "a" * 2000,
    ],
)
def test_an_uploads_address_that_is_secret_or_long_is_kept_in_no_other_process(
    monkeypatch: pytest.MonkeyPatch, picture: Path, url: str
) -> None:
    with Loopback(Answer(body={"code": 200, "data": {"publicUrl": url}})) as service:
        connection = {"conn_type": "kling", "password": "sk_test", "host": service.url}
        monkeypatch.setenv("AIRFLOW_CONN_KLING_DEFAULT", json.dumps(connection))
        uploading = references(image_list=[str(picture)])
        assert uploading.upload().to_body()["image_list"] == [{"image_url": url}]
    assert uploading.uploads == {}


def test_a_request_without_files_goes_as_it_is_and_nothing_is_uploaded(kling_emulator: KlingEmulator) -> None:
    files = references(image_list=[ELSEWHERE])
    assert files.check().files == ()
    assert files.upload().to_body()["image_list"] == [{"image_url": ELSEWHERE}]
    assert files.identity() == files.upload().to_body()
    assert not kling_emulator.ledger.requests()


def test_a_file_in_the_home_directory_or_beside_the_process_is_found(
    kling_emulator: KlingEmulator, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(picture.parent))
    monkeypatch.chdir(picture.parent)
    files = references(image_list=["~/picture.png", "./picture.png", Path("picture.png")])
    assert [file.sha256 for file in files.check().files] == [sha256(picture)] * 2
    files.upload()
    assert len(kling_emulator.ledger.requests("upload")) == 1


def test_an_upload_that_failed_by_chance_is_made_again(
    kling_emulator: KlingEmulator, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    kling_emulator.inject("answer", call="upload", status=503, times=1)
    kling_emulator.inject("reset", call="upload", times=1)

    url = (references(image_list=[picture]).upload().image_list or ())[0].image_url

    assert requests.get(url, timeout=10).content == picture.read_bytes()
    assert len(kling_emulator.ledger.requests("upload")) == 3
    assert len(naps) == 2


def test_an_upload_that_keeps_failing_ends_with_nothing_billed(
    kling_emulator: KlingEmulator, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    kling_emulator.inject("answer", call="upload", status=429, times=9)
    with pytest.raises(RateLimitedError) as raised:
        references(image_list=[picture]).upload()
    assert raised.value.retryable
    assert raised.value.paid is Paid.NO
    assert "nothing was billed" in str(raised.value)
    assert not kling_emulator.ledger.creates()


def test_a_file_that_is_replaced_after_its_check_is_not_used(
    kling_emulator: KlingEmulator, picture: Path
) -> None:
    files = references(image_list=[picture])
    files.check()
    draw_image(picture, seed=9)
    with pytest.raises(FileChangedError) as raised:
        files.upload()
    assert raised.value.retryable
    assert str(picture) in str(raised.value)


# What stays the same


def test_attempts_that_upload_the_same_file_ask_for_the_same_thing(
    kling_emulator: KlingEmulator, picture: Path, clip: Path
) -> None:
    fields: dict[str, Any] = {"image_list": [picture, ELSEWHERE], "video_list": [clip]}
    first, second = references(**fields), references(**fields)

    assert first.upload() != second.upload()
    assert first.identity() == second.identity() == references(**fields).identity()
    assert first.identity()["image_list"] == [
        {"image_url": f"sha256:{sha256(picture)}"},
        {"image_url": ELSEWHERE},
    ]
    assert first.identity()["video_list"] == [{"video_url": f"sha256:{sha256(clip)}"}]


def test_another_picture_under_the_same_name_asks_for_something_else(
    kling_emulator: KlingEmulator, picture: Path
) -> None:
    before = references(image_list=[picture]).identity()
    draw_image(picture, seed=9)
    assert references(image_list=[picture]).identity() != before


def test_what_is_asked_for_can_be_told_without_the_libraries(
    kling_emulator: KlingEmulator, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = references(video_list=[clip]).identity()
    monkeypatch.setitem(sys.modules, "av", None)
    assert references(video_list=[clip]).identity() == expected


def test_what_is_asked_for_cannot_be_told_of_a_file_that_is_gone(
    kling_emulator: KlingEmulator, picture: Path
) -> None:
    gone = references(image_list=[ELSEWHERE, "/nowhere/a.png", picture])
    with pytest.raises(InvalidRequestError) as raised:
        gone.identity()
    assert raised.value.faults == (
        Fault("image_list[1].image_url", "/nowhere/a.png", "the file is not there"),
    )


# Looking at files


def test_what_was_seen_of_the_files_is_told(kling_emulator: KlingEmulator, picture: Path, clip: Path) -> None:
    checked = references(image_list=[picture, picture], video_list=[clip]).check()

    image, video = checked.files
    assert (image.reference, image.size_bytes, image.sha256) == (
        str(picture),
        picture.stat().st_size,
        sha256(picture),
    )
    assert image.facts == ImageFacts("png", picture.stat().st_size, 400, 300)
    assert isinstance(video.facts, VideoFacts)
    assert (video.sha256, video.facts.frame_rate) == (sha256(clip), 24)
    assert not kling_emulator.ledger.requests()


@pytest.mark.parametrize(("refer_type", "seconds"), [(None, 4.5), ("base", 4.5), ("feature", None)])
def test_the_length_of_a_video_to_be_edited_is_known_before_it_is_paid(
    kling_emulator: KlingEmulator, clip: Path, refer_type: str | None, seconds: float | None
) -> None:
    checked = references(video_list=[{"video_url": clip, "refer_type": refer_type}]).check()
    assert checked.base_video_seconds == pytest.approx(seconds, abs=0.05)
    assert references(video_list=["https://example.com/v.mp4"]).check().base_video_seconds is None


def test_all_faults_of_all_references_are_told_together(
    public_service: None, tmp_path: Path, picture: Path
) -> None:
    small = draw_image(tmp_path / "small.png", size=(299, 400))
    text = tmp_path / "text.png"
    text.write_text("<html>no picture</html>")
    short = draw_video(tmp_path / "short.mp4", seconds=1)
    inline = base64.b64encode(image_bytes(size=(1000, 300))).decode()

    faults = faults_of(
        model="a-newer-one",
        image_list=[
            small,
            picture,
            text,
            "/nowhere/a.png",
            "http://127.0.0.1:8000/a.png",
            inline,
            small,
            tmp_path,
        ],
        video_list=[short],
    )

    assert set(faults) == {
        *(f"image_list[{i}].image_url" for i in (0, 2, 3, 4, 5, 6, 7)),
        "video_list[0].video_url",
    }
    assert "299x400 pixels, each side must have at least 300" in faults["image_list[0].image_url"]
    assert "neither jpg nor png" in faults["image_list[2].image_url"]
    assert faults["image_list[3].image_url"] == "the file is not there"
    assert "127.0.0.1 is a loopback address" in faults["image_list[4].image_url"]
    assert "1000x300 pixels, its ratio" in faults["image_list[5].image_url"]
    assert faults["image_list[6].image_url"] == faults["image_list[0].image_url"]
    assert "it is a directory" in faults["image_list[7].image_url"]
    assert "1.00 s long, 3 to 10 s are taken" in faults["video_list[0].video_url"]


@pytest.mark.parametrize(("suffix", "field"), [(".png", "image_list"), (".mp4", "video_list")])
def test_an_image_for_a_video_and_the_other_way_round_is_told(
    kling_emulator: KlingEmulator, picture: Path, clip: Path, suffix: str, field: str
) -> None:
    [told] = faults_of(**{field: [clip if field == "image_list" else picture]}).values()
    assert told in ("the image is neither jpg nor png", "the video is neither mp4 nor mov")


def test_a_file_that_is_too_large_is_not_even_read(
    kling_emulator: KlingEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, video = tmp_path / "a.png", tmp_path / "a.mp4"
    for path, size in ((image, MAX_IMAGE_BYTES + 1), (video, 50 * 1024**3)):
        with path.open("wb") as file:
            file.truncate(size)
    faults = faults_of(image_list=[image], video_list=[video])
    assert f"has {MAX_IMAGE_BYTES + 1} bytes, at most {MAX_IMAGE_BYTES}" in faults["image_list[0].image_url"]
    assert f"has {50 * 1024**3} bytes, at most" in faults["video_list[0].video_url"]


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(100), b"root:x:0:0:root\n"])
def test_what_is_no_image_never_leaves_the_machine(
    kling_emulator: KlingEmulator, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    files = references(image_list=[path])
    with pytest.raises(InvalidRequestError):
        files.upload()
    assert not kling_emulator.ledger.requests("upload")


def test_a_pipe_is_not_waited_for(kling_emulator: KlingEmulator, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert "no regular file" in faults_of(image_list=[tmp_path / "a.png"])["image_list[0].image_url"]
    assert "no regular file" in faults_of(image_list=["file:///dev/zero"])["image_list[0].image_url"]


def test_an_unknown_kind_of_storage_is_told_and_not_tried_again(kling_emulator: KlingEmulator) -> None:
    [told] = faults_of(image_list=["nosuch://bucket/a.png"]).values()
    assert "cannot be opened" in told
    assert "nosuch" in told


@pytest.mark.parametrize(("library", "field"), [("PIL", "image_list"), ("av", "video_list")])
def test_without_the_library_a_file_is_refused_before_money(
    kling_emulator: KlingEmulator,
    picture: Path,
    clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    library: str,
    field: str,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MediaLibraryMissingError, match=r"airflow-provider-kling\[media\]") as raised:
        references(**{field: [picture if field == "image_list" else clip]}).upload()
    assert not raised.value.retryable
    assert not kling_emulator.ledger.requests()


def test_an_image_inside_the_request_is_looked_at_where_that_is_possible(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    inline = base64.b64encode(image_bytes(size=(200, 200))).decode()
    assert "200x200" in faults_of(image_list=[inline])["image_list[0].image_url"]
    broken = base64.b64encode(image_bytes()[:500]).decode()
    assert "cut off or broken" in faults_of(image_list=[broken])["image_list[0].image_url"]
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert references(image_list=[inline]).check().files == ()


# Addresses


def test_addresses_in_a_private_network_are_refused_without_their_secrets(public_service: None) -> None:
    faults = references(
        image_list=["http://me:hush@minio:9000/a.png?X-Amz-Signature=hush", "https://10.0.0.7/b.png"],
        video_list=["http://0x7f.1/v.mp4"],
    )
    with pytest.raises(InvalidRequestError) as raised:
        faults.check()
    text = str(raised.value)
    assert "hush" not in text
    assert "http://minio:9000/a.png" in text
    assert "10.0.0.7 is an address of a private network" in text
    assert "0x7f.1 is 127.0.0.1, which is a loopback address" in text
    assert "give the file's path" in text


def test_addresses_on_the_internet_are_left_to_the_service(public_service: None) -> None:
    assert references(image_list=[ELSEWHERE], video_list=["https://8.8.8.8/v.mp4"]).check().files == ()


def test_a_service_in_the_private_network_itself_can_reach_what_is_there(
    kling_emulator: KlingEmulator,
) -> None:
    assert references(image_list=["http://127.0.0.1:1/a.png", "http://minio/a.png"]).check().files == ()


# Object storage


@pytest.fixture
def bucket(s3_server: S3Server, picture: Path, clip: Path) -> S3Server:
    s3_server.put("in/picture.png", picture.read_bytes())
    s3_server.put("in/clip.mp4", clip.read_bytes())
    return s3_server


def test_files_of_object_storage_are_checked_and_uploaded(
    kling_emulator: KlingEmulator, bucket: S3Server, picture: Path, clip: Path
) -> None:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    files = references(
        image_list=[bucket.uri("in/picture.png"), ObjectStoragePath(bucket.uri("in/picture.png"))],
        video_list=[bucket.uri("in/clip.mp4")],
    )
    checked = files.check()
    assert [file.sha256 for file in checked.files] == [sha256(picture), sha256(clip)]
    assert checked.base_video_seconds == pytest.approx(4.5, abs=0.05)

    request = files.upload()
    assert len(kling_emulator.ledger.requests("upload")) == 2
    video_url = (request.video_list or ())[0].video_url
    assert requests.get(video_url, timeout=10).content == clip.read_bytes()
    local = references(image_list=[picture, picture], video_list=[clip])
    assert files.identity() == local.identity()


def test_what_is_not_in_the_bucket_is_told(kling_emulator: KlingEmulator, bucket: S3Server) -> None:
    assert faults_of(image_list=[bucket.uri("in/gone.png")], video_list=["s3://kling_s3@nosuch/v.mp4"]) == {
        "image_list[0].image_url": "the file is not there",
        "video_list[0].video_url": "the file is not there",
    }


@pytest.fixture
def unreachable_storage(monkeypatch: pytest.MonkeyPatch) -> str:
    from .hooks.loopback import refused_port

    extra = {
        "region_name": "us-east-1",
        "endpoint_url": f"http://127.0.0.1:{refused_port()}",
        "config_kwargs": {"connect_timeout": 1, "retries": {"max_attempts": 0}},
    }
    connection = {"conn_type": "aws", "login": "a", "password": "b", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_S3_DOWN", json.dumps(connection))
    pytest.importorskip("s3fs")
    return "s3://s3_down@bucket/a.png"


def test_storage_that_cannot_be_asked_is_no_fault_of_the_request(
    kling_emulator: KlingEmulator, unreachable_storage: str
) -> None:
    files = references(image_list=[unreachable_storage])
    for ask in (files.check, files.identity, files.upload):
        with pytest.raises(FileUnavailableError) as raised:
            ask()
        assert raised.value.retryable
        assert raised.value.paid is Paid.NO
        assert unreachable_storage in str(raised.value)


def test_a_fault_that_stays_is_told_before_one_that_may_pass(
    kling_emulator: KlingEmulator, unreachable_storage: str
) -> None:
    assert set(faults_of(image_list=[unreachable_storage, "/nowhere/a.png"])) == {"image_list[1].image_url"}


def test_files_are_looked_at_once_for_all_questions(
    kling_emulator: KlingEmulator, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    opening: Callable[..., Any] = Path.open

    def count(path: Path, *how: Any, **more: Any) -> Any:
        opened.append(path.name)
        return opening(path, *how, **more)

    monkeypatch.setattr(Path, "open", count)
    files = references(image_list=[picture, picture])
    files.check()
    files.identity()
    files.check()
    assert opened.count("picture.png") == 1
    gone = references(image_list=["/nowhere/a.png"])
    errors: list[KlingError] = []
    for _ in range(2):
        with pytest.raises(InvalidRequestError) as raised:
            gone.check()
        errors.append(raised.value)
    assert errors[0] is errors[1]
