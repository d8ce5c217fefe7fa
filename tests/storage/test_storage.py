from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_kling.api.errors import DownloadError, NoResultError, Paid, ResultExpiredError
from airflow_provider_kling.api.task import VideoTask
from airflow_provider_kling.manifest import manifest_document
from airflow_provider_kling.output_path import Coordinates
from airflow_provider_kling.result import Asked
from airflow_provider_kling.storage import StorageError, StoredFile
from tests.conftest import AIRFLOW
from tests.hooks.loopback import Answer, Fault, Loopback, Received, Reply, task_answer
from tests.hooks.test_download import Film
from tests.storage.conftest import COORDINATES, S3, VIDEO, Local, Storage, film, task

FILM = film()
LARGE = FILM + b"\0\0\0\0free" + os.urandom(12_000_000)
"""More than two of the parts in which it goes to S3."""


def of(*films: bytes) -> Loopback:
    """Serve films under /0.mp4, /1.mp4 and so on."""

    def script(request: Received) -> Reply:
        return Answer(200, films[int(request.target[1])], VIDEO)

    return Loopback(script=script)


def links(service: Loopback, count: int = 1) -> tuple[str, ...]:
    return tuple(f"{service.url}/{index}.mp4" for index in range(count))


@pytest.mark.parametrize("content", [FILM, LARGE, b"?"], ids=["small", "large", "one byte"])
def test_a_video_lies_where_it_belongs_with_its_manifest(storage: Storage, content: bytes) -> None:
    with of(content) as service:
        [stored] = storage.open("{dag_id}/{kling_task_id}.{ext}").store(task(*links(service)))
    assert storage.names() == ["daily/k-1.mp4", "daily/k-1.mp4.json"]
    assert storage.read("daily/k-1.mp4") == content
    assert stored.path == f"{storage.base}daily/k-1.mp4"
    assert stored.manifest_path == f"{storage.base}daily/k-1.mp4.json"
    assert (stored.size_bytes, stored.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert stored.media_type == "video/mp4"
    file = storage.manifest("daily/k-1.mp4")["file"]
    assert (file["name"], file["size_bytes"], file["sha256"]) == ("k-1.mp4", stored.size_bytes, stored.sha256)


def test_length_and_pixels_are_read_from_the_stored_file(storage: Storage) -> None:
    with of(film(3, sound=True, size=(640, 360))) as service:
        [stored] = storage.open().store(task(*links(service), duration_seconds=99.0))
    assert stored.duration_seconds == pytest.approx(3, abs=0.1)
    assert (stored.width, stored.height, stored.frame_rate, stored.has_sound) == (640, 360, 25.0, True)
    assert storage.manifest("k-1.mp4")["file"]["duration_seconds"] == stored.duration_seconds


def test_without_pyav_the_video_is_stored_and_the_extra_named_once(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with of(FILM, FILM) as service:
        stored = local.open().store(task(*links(service, 2)))
    assert [(file.duration_seconds, file.width, file.has_sound) for file in stored] == [
        (None, None, None)
    ] * 2
    assert [said for said in local.said if "airflow-provider-kling[media]" in said][1:] == []
    assert any(said.startswith("INFO") and "airflow-provider-kling[media]" in said for said in local.said)


def test_a_video_that_cannot_be_looked_into_is_kept_with_a_warning(local: Local) -> None:
    with of(b"\0\0\0\x18ftypmp42" + b"nonsense" * 99) as service:
        [stored] = local.open().store(task(*links(service)))
    assert stored.width is None
    assert any(said.startswith("WARNING") and "cannot be read" in said for said in local.said)


def test_several_results_are_fetched_side_by_side_and_kept_in_order(storage: Storage) -> None:
    films = [FILM + bytes([index]) * 9 for index in range(6)]
    together = threading.Barrier(4, timeout=120)

    def script(request: Received) -> Reply:
        return Answer(200, films[int(request.target[1])], VIDEO)

    class Fetching(threading.local):
        waited = False

    storing = storage.open("{index}.mp4")
    fetch_one = storing._fetch
    first = Fetching()

    def meeting(*arguments: Any) -> Any:
        if not first.waited:
            first.waited = True
            together.wait()
        return fetch_one(*arguments)

    storing._fetch = meeting  # type: ignore[method-assign]
    with Loopback(script=script) as service:
        stored = storing.store(task(*links(service, 6)))
    assert [file.index for file in stored] == list(range(6))
    for index, content in enumerate(films):
        assert storage.read(f"{index}.mp4") == content
        assert storage.manifest(f"{index}.mp4")["index"] == index


def test_what_is_there_already_and_whole_is_not_fetched_again(storage: Storage) -> None:
    with of(FILM, LARGE) as service:
        first = storage.open().store(task(*links(service, 2)))
        service.received.clear()
        assert storage.open().find("k-1") == first
        assert storage.open().store(task(*links(service, 2))) == first
        assert service.received == []


@pytest.mark.parametrize("extension", ["mov", "webm"])
def test_a_video_of_another_kind_is_found_again(local: Local, extension: str) -> None:
    media_type = {"mov": "video/quicktime", "webm": "video/webm"}[extension]
    with Loopback(Answer(200, b"?" * 99, {"Content-Type": media_type})) as service:
        [stored] = local.open().store(task(f"{service.url}/v"))
    assert stored.path.endswith(f"/k-1.{extension}")
    assert stored.media_type == media_type
    assert local.open().find("k-1") == [stored]


def damage(storage: Storage, how: str) -> None:
    manifest = storage.manifest("k-1.mp4")
    if how == "cut":
        storage.write("k-1.mp4", FILM[:-1])
    elif how == "another content":
        storage.write("k-1.mp4", FILM[:-1] + b"?")
    elif how == "no file":
        storage.remove("k-1.mp4")
    elif how == "no manifest":
        storage.remove("k-1.mp4.json")
    elif how == "empty manifest":
        storage.write("k-1.mp4.json", b"")
    elif how == "cut manifest":
        storage.write("k-1.mp4.json", storage.read("k-1.mp4.json")[:-20])
    elif how == "deep manifest":
        storage.write("k-1.mp4.json", b"[" * 100_000)
    elif how == "huge manifest":
        storage.write("k-1.mp4.json", b" " * 1_100_000 + json.dumps(manifest).encode())
    elif how == "manifest of a list":
        storage.write("k-1.mp4.json", b"[]")
    else:
        field, value = how.split("=")
        (manifest["file"] if field in manifest["file"] else manifest)[field] = json.loads(value)
        storage.write("k-1.mp4.json", json.dumps(manifest).encode())


@pytest.mark.parametrize(
    "how",
    [
        "cut",
        "another content",
        "no file",
        "no manifest",
        "empty manifest",
        "cut manifest",
        "deep manifest",
        "huge manifest",
        "manifest of a list",
        "schema_version=2",
        "schema_version=null",
        'kling_task_id="k-2"',
        "index=1",
        "results=0",
        "results=2",
        'results="many"',
        "size_bytes=-1",
        "size_bytes=NaN",
        'sha256="00"',
        'sha256=["x"]',
        'name="../k-1.mp4"',
        "duration_seconds=NaN",
        'file="x"',
    ],
)
def test_what_is_not_as_its_manifest_says_is_fetched_again(local: Local, how: str) -> None:
    with of(FILM) as service:
        first = local.open().store(task(*links(service)))
        damage(local, how)
        service.received.clear()
        assert local.open().find("k-1") is None
        assert local.open().store(task(*links(service))) == first
        assert len(service.received) == 1
    assert local.open().find("k-1") == first


def test_damage_in_the_bucket_is_seen_too(s3: S3) -> None:
    with of(FILM) as service:
        s3.open().store(task(*links(service)))
    s3.server.put("k-1.mp4", FILM[:-1] + b"?")  # past everything that could be remembered of it
    assert s3.open().find("k-1") is None


def test_a_manifest_of_a_later_version_with_more_fields_is_read(local: Local) -> None:
    with of(FILM) as service:
        first = local.open().store(task(*links(service)))
    manifest = local.manifest("k-1.mp4")
    manifest["new"] = manifest["file"]["new"] = {"x": 1}
    local.write("k-1.mp4.json", json.dumps(manifest).encode())
    assert local.open().find("k-1") == first


def test_nothing_is_found_where_nothing_was_stored(storage: Storage) -> None:
    assert storage.open("not/there/yet").find("k-1") is None
    assert storage.names() == []


def test_a_fixed_name_is_replaced_with_a_warning_that_names_the_old_task(storage: Storage) -> None:
    with of(FILM, LARGE) as service:
        storage.open("kite.mp4").store(task(links(service, 1)[0], task_id="k-1"))
        assert not any("is replaced" in said for said in storage.said)
        storage.open("kite.mp4").store(task(links(service, 2)[1], task_id="k-2"))
    [warning] = [said for said in storage.said if "is replaced" in said]
    assert warning.startswith("WARNING")
    assert "Kling task k-1" in warning
    assert "k-2" in warning
    assert storage.names() == ["kite.mp4", "kite.mp4.json"]
    assert storage.read("kite.mp4") == LARGE
    assert storage.manifest("kite.mp4")["kling_task_id"] == "k-2"
    assert storage.open("kite.mp4").find("k-1") is None


def test_a_file_of_someone_else_is_replaced_with_a_warning(local: Local) -> None:
    local.write("kite.mp4", b"holiday")
    with of(FILM) as service:
        local.open("kite.mp4").store(task(*links(service)))
    assert any("no manifest tells what it was" in said for said in local.said)


def test_mapped_tasks_keep_out_of_each_others_way(local: Local) -> None:
    with of(FILM, LARGE) as service:
        for map_index in range(2):
            coordinates = Coordinates("daily", "r", "make", map_index)
            local.open("kite.mp4", coordinates).store(
                task(links(service, 2)[map_index], task_id=f"k-{map_index}")
            )
    assert local.names() == ["kite_0.mp4", "kite_0.mp4.json", "kite_1.mp4", "kite_1.mp4.json"]


# What goes wrong: nothing half is left, the paid task is named, a retry fetches again


def fails(storage: Storage, service: Loopback, *, count: int = 1, template: str = "") -> DownloadError:
    with pytest.raises(DownloadError) as raised:
        storage.open(template).store(task(*links(service, count)))
    error = raised.value
    assert error.task_id == "k-1"
    assert "k-1" in str(error)
    assert error.paid is Paid.YES
    return error


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Answer(200, LARGE, VIDEO, promised=len(LARGE) + 1), "cut after"),
        (Answer(200, b"<html>Sign in</html>", {"Content-Type": "text/html"}), "<html>Sign in</html>"),
        (Answer(200, b"<html>Sign in</html>", VIDEO), "<html>Sign in</html>"),
        (Answer(200, {"error": "no"}), "application/json"),
        (Answer(200, b"", VIDEO), "is empty"),
        (Answer(503, b"busy"), "code 503"),
        (Fault.RESET, "could not be read"),
    ],
    ids=["half", "html", "html as video", "json", "empty", "busy", "reset"],
)
def test_what_is_no_whole_video_is_not_stored(storage: Storage, reply: Reply, said: str) -> None:
    with Loopback(reply) as service:
        error = fails(storage, service)
        assert said in str(error)
        assert error.retryable
        assert "The video is paid for, and its link is good for 7 days" in str(error)
        assert storage.names() == []
        service.replies_from_now_on(Answer(200, FILM, VIDEO))
        storage.open().store(task(*links(service)))
    assert storage.read("k-1.mp4") == FILM


def test_a_failed_download_leaves_the_video_that_was_there(storage: Storage) -> None:
    with Loopback(Answer(200, FILM, VIDEO)) as service:
        storage.open("kite.mp4").store(task(*links(service), task_id="k-0"))
        service.replies_from_now_on(Answer(200, LARGE, VIDEO, promised=len(LARGE) + 1))
        fails(storage, service, template="kite.mp4")
    assert storage.read("kite.mp4") == FILM
    assert storage.open("kite.mp4").find("k-0") is not None
    assert storage.names() == ["kite.mp4", "kite.mp4.json"]


def test_a_cut_download_goes_on_into_the_storage(storage: Storage) -> None:
    served = Film(7_000_000, 4_000_000, content=LARGE)
    with Loopback(script=served) as service:
        [stored] = storage.open().store(task(*links(service)))
    assert storage.read("k-1.mp4") == LARGE
    assert stored.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert [asked for asked, _ in served.ranges] == [None, "bytes=7000000-", "bytes=11000000-"]


def test_a_download_that_has_to_begin_anew_leaves_nothing_of_the_first_try(storage: Storage) -> None:
    with Loopback(script=Film(7_000_000, content=LARGE, ETag="")) as service:
        storage.open().store(task(*links(service)))
    assert storage.names() == ["k-1.mp4", "k-1.mp4.json"]
    assert storage.read("k-1.mp4") == LARGE


def test_one_result_that_fails_does_not_undo_the_others(storage: Storage) -> None:
    def script(request: Received) -> Reply:
        return Answer(200, b"<html>", VIDEO) if request.target == "/1.mp4" else Answer(200, FILM, VIDEO)

    with Loopback(script=script) as service:
        fails(storage, service, count=3)
        assert storage.names() == ["k-1.mp4", "k-1.mp4.json", "k-1_2.mp4", "k-1_2.mp4.json"]
        assert storage.open().find("k-1") is None
        service.replies_from_now_on(Answer(200, FILM, VIDEO))
        assert len(storage.open().store(task(*links(service, 3)))) == 3
        assert [fetch.target for fetch in service.received] == ["/1.mp4"]


def test_a_full_disk_is_told_with_the_paid_task(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with of(FILM) as service:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            error = fails(local, service)
        assert isinstance(error, StorageError)
        assert "No space left on device" in str(error)
        assert error.retryable
        assert local.names() == []
        assert local.open().store(task(*links(service)))


def test_a_disk_that_is_really_full_leaves_nothing(local: Local) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    import resource
    import signal

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with of(LARGE) as service:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, limits[1]))
            error = fails(local, service)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)
    assert "File too large" in str(error)
    assert local.names() == []


def test_a_directory_that_is_a_file_is_told(local: Local) -> None:
    local.write("taken", b"")
    with of(FILM) as service:
        error = fails(local, service, template="taken/kite.mp4")
    assert "could not be stored" in str(error)
    assert "taken/kite.mp4" in str(error)
    assert local.names() == ["taken"]


def test_a_bucket_that_is_not_there_is_told_and_not_made(s3: S3) -> None:
    base = s3.base
    s3.base = base.replace(s3.server.bucket, "no-such-bucket-of-ours")
    with of(FILM) as service:
        error = fails(s3, service)
    assert "no-such-bucket-of-ours" in str(error)
    assert error.retryable
    assert "no-such-bucket-of-ours" not in [
        each["Name"] for each in s3.server.client.list_buckets()["Buckets"]
    ]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that lets S3 refuse a kind of call from then on."""
    from s3fs import S3FileSystem

    refused: list[str] = []

    def refusing(call: Any) -> Any:
        def wrapped(self: Any, method: str, *arguments: Any, **named: Any) -> Any:
            if method in refused:
                raise PermissionError(f"Access Denied: {method}")
            return call(self, method, *arguments, **named)

        return wrapped

    for name in ("call_s3", "_call_s3"):
        monkeypatch.setattr(S3FileSystem, name, refusing(getattr(S3FileSystem, name)))

    def refuse(method: str) -> None:
        refused[:] = [method]

    return refuse


@pytest.mark.parametrize(
    ("method", "content"),
    [
        ("put_object", FILM),
        ("copy_object", FILM),
        ("create_multipart_upload", LARGE),
        ("upload_part", LARGE),
        ("complete_multipart_upload", LARGE),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bucket_that_refuses_leaves_nothing_half(
    s3: S3, refuse: Callable[[str], None], method: str, content: bytes
) -> None:
    with of(content) as service:
        refuse(method)
        error = fails(s3, service)
        assert f"Access Denied: {method}" in str(error)
        assert s3.base in str(error)
        assert error.retryable
        assert s3.names() == []
        refuse("nothing")
        assert s3.open().store(task(*links(service)))


def test_a_place_that_cannot_be_asked_is_no_place_without_the_video(
    s3: S3, refuse: Callable[[str], None]
) -> None:
    with of(FILM) as service:
        stored = s3.open().store(task(*links(service)))
        refuse("head_object")
        with pytest.raises(StorageError, match="Access Denied") as raised:
            s3.open().find("k-1")
        assert raised.value.task_id == "k-1"
        refuse("get_object")
        with pytest.raises(StorageError, match="Access Denied"):
            s3.open().find("k-1")
        # Where it may be written but not read, it can still be delivered.
        [again] = s3.open().store(task(*links(service)))
    assert again.sha256 == stored[0].sha256


def test_a_kind_of_storage_that_airflow_does_not_know_is_told(local: Local) -> None:
    local.base = "no-such-store://bucket/"
    with of(FILM) as service:
        assert "no-such-store" in str(fails(local, service))


def test_a_completed_task_without_a_link_is_told(local: Local) -> None:
    with pytest.raises(NoResultError, match="k-1"):
        local.open().store(task())


# Links that are dead


def test_a_dead_link_is_asked_for_once_more(local: Local, service_host: Any) -> None:
    def script(request: Received) -> Reply:
        if "task_id" in request.target:
            return task_answer("completed", f"{service.url}/new/0", f"{service.url}/new/1", task_id="k-1")
        return Answer(200, FILM, VIDEO) if "/new/" in request.target else Answer(410)

    with Loopback(script=script) as service:
        service_host(service.url)
        stored = local.open().store(task(*links(service, 2)))
        asked = [request.target for request in service.received if "task_id" in request.target]
    assert len(stored) == 2
    assert len(asked) == 1


@pytest.mark.parametrize("count", [0, 1])
def test_a_video_that_is_gone_is_told_as_gone(local: Local, service_host: Any, count: int) -> None:
    def script(request: Received) -> Reply:
        if "task_id" in request.target:
            return task_answer("completed", *links(service, count), task_id="k-1")
        return Answer(404)

    with Loopback(script=script) as service:
        service_host(service.url)
        error = fails(local, service)
    assert type(error) is ResultExpiredError
    assert not error.retryable
    assert "7 days" in str(error)
    assert local.names() == []


def test_a_service_that_cannot_give_a_fresh_link_now_can_be_asked_later(
    local: Local, service_host: Any
) -> None:
    with Loopback(Answer(404)) as service, Loopback(Answer(503)) as busy:
        service_host(busy.url)
        error = fails(local, service)
    assert isinstance(error, StorageError)
    assert error.retryable


# With the emulator


@pytest.fixture
def made(kling_emulator: Any) -> VideoTask:
    from airflow_provider_kling.api.request import VideoRequest
    from airflow_provider_kling.hooks.kling import KlingHook

    hook = KlingHook()
    return hook.wait(hook.submit(VideoRequest(prompt="a kite")).task_id, poll_interval=0.05)


@pytest.mark.parametrize("kind", ["cut", "reset", "stall"])
def test_a_video_of_the_service_arrives_over_a_bad_line(
    storage: Storage, kling_emulator: Any, made: VideoTask, kind: str
) -> None:
    kling_emulator.inject(kind, call="download")
    [stored] = storage.open().store(made)
    assert stored.duration_seconds == pytest.approx(5, abs=0.1)
    assert storage.open().find(made.task_id) == [stored]
    assert stored.size_bytes == len(storage.read(f"{made.task_id}.mp4"))


# The manifest, and what goes to XCom


def test_the_manifest_tells_how_the_video_was_made(storage: Storage) -> None:
    from decimal import Decimal

    import pendulum

    from airflow_provider_kling.api.request import VideoRequest
    from airflow_provider_kling.api.task import RecordedCost

    done = pendulum.datetime(2026, 11, 22, 10, 0)
    with of(FILM, FILM) as service:
        video = task(
            *links(service, 2), created_at=done, completed_at=done.add(seconds=80), generation_seconds=80.0
        )
        files = storage.open().store(video)
        request = VideoRequest(
            prompt="ein Drachen 🪁",
            callback_url="https://example.com/secret",
            image_list=["/9j/" + "A" * 9000],
        )
        cost = RecordedCost(task_id="k-1", settled=True, amount=Decimal("0.3165"))
        document = manifest_document(video, Asked.of(request, Decimal("0.32")), COORDINATES, cost)
        storage.open().write_manifests(files, document)
        assert storage.open().find("k-1") == files
    for index, name in enumerate(["k-1.mp4", "k-1_1.mp4"]):
        manifest = storage.manifest(name)
        assert manifest["schema_version"] == 1
        assert manifest["provider_version"]
        assert (manifest["kling_task_id"], manifest["index"], manifest["results"]) == ("k-1", index, 2)
        assert manifest["model"] == "kling-v3-omni"
        assert manifest["request"]["prompt"] == "ein Drachen 🪁"
        assert {name: manifest[name] for name in ("dag_id", "run_id", "task_id", "map_index")} == {
            "dag_id": "daily",
            "run_id": COORDINATES.run_id,
            "task_id": "make",
            "map_index": -1,
        }
        assert pendulum.parse(manifest["created_at"]) == done
        assert pendulum.parse(manifest["completed_at"]) == done.add(seconds=80)
        assert manifest["stored_at"]
        assert manifest["generation_seconds"] == 80
        assert manifest["cost"] == {"estimated_usd": 0.32, "recorded_usd": 0.3165, "currency": "USD"}
        text = storage.read(name + ".json").decode()
        assert "🪁" in text
        for secret in (service.url, "A" * 100, "example.com"):
            assert secret not in text


def test_a_cost_that_is_not_settled_is_not_known_yet(local: Local) -> None:
    from decimal import Decimal

    from airflow_provider_kling.api.task import RecordedCost

    cost = RecordedCost(task_id="k-1", settled=False, amount=Decimal(0))
    assert manifest_document(task(), None, None, cost)["cost"]["recorded_usd"] is None


def test_a_manifest_that_cannot_be_written_is_told_with_the_paid_task(local: Local) -> None:
    with of(FILM) as service:
        files = local.open().store(task(*links(service)))
    local.remove("k-1.mp4.json")
    (local.directory / "k-1.mp4.json").mkdir()
    with pytest.raises(StorageError, match=r"k-1\.mp4\.json could not be written") as raised:
        local.open().write_manifests(files, manifest_document(task()))
    assert raised.value.task_id == "k-1"


def test_a_stored_file_goes_through_xcom(storage: Storage) -> None:
    with of(FILM) as service:
        [stored] = storage.open().store(task(*links(service)))
    told = json.loads(json.dumps(stored.to_dict()))
    assert StoredFile(**told) == stored
    path: Any = ObjectStoragePath(told["path"])
    with path.open("rb") as file:
        assert file.read() == FILM


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("/d/x.mp4", "file:///d/x.mp4"),
        ("file:///d/x.mp4", "file:///d/x.mp4"),
        ("file://disk@/d/x.mp4", "file:///d/x.mp4"),
        ("s3://aws@bucket/a@b/x.mp4", "s3://bucket/a@b/x.mp4"),
        ("s3://bucket/a@b.mp4", "s3://bucket/a@b.mp4"),
    ],
)
def test_the_uri_of_a_file_names_no_connection(path: str, uri: str) -> None:
    assert StoredFile(path, path + ".json", 0, 1, "0" * 64, "video/mp4").uri == uri


def test_any_file_system_of_airflow_takes_a_video() -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    attach: Any = pytest.importorskip("airflow.sdk.io" if AIRFLOW >= (3, 0) else "airflow.io.store").attach
    attach("memory", conn_id="a_store_of_its_own", fs=MemoryFileSystem())
    memory = Storage("memory://a_store_of_its_own@/films/")
    with of(LARGE) as service:
        [stored] = memory.open("new/directory").store(task(*links(service)))
    assert memory.read("new/directory/k-1.mp4") == LARGE
    assert memory.open("new/directory").find("k-1") == [stored]


def test_a_file_on_local_disk_loads_no_providers_file_systems(tmp_path: Path) -> None:
    """Airflow imports those of all providers for the first file system that it is asked for: seconds in each task."""
    program = (
        "import sys\n"
        "from airflow_provider_kling.storage import Place\n"
        "assert [Place.at(place).manifest() for place in sys.argv[1:]] == [None, None]\n"
        "print('boto3' in sys.modules)"
    )
    places = [f"file://{tmp_path}/a.mp4", f"{tmp_path}/a.mp4"]
    done = subprocess.run(
        [sys.executable, "-c", program, *places], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "False"
