"""Results: real videos under links of their own."""

from __future__ import annotations

import contextlib
import io
from urllib.parse import urlsplit

import av
import pytest
import requests
from urllib3.exceptions import ProtocolError

from airflow_provider_kling.emulator import KlingEmulator
from tests.emulator.caller import Caller, Clock


@pytest.fixture
def task_id(emulator: KlingEmulator, caller: Caller) -> str:
    task_id = caller.create(duration="3")
    emulator.complete(task_id)
    return task_id


def get(link: str, **headers: str) -> requests.Response:
    return requests.get(link, headers=headers, timeout=120)


@pytest.mark.parametrize(
    ("fields", "seconds", "size", "has_audio"),
    [
        ({"duration": "3"}, 3, (320, 180), False),
        ({"duration": "4", "aspect_ratio": "9:16", "mode": "pro"}, 4, (270, 480), False),
        ({"duration": "3", "aspect_ratio": "1:1", "sound": "on"}, 3, (180, 180), True),
        (
            {"video_list": [{"video_url": "https://example.com/v.mp4", "keep_original_sound": "yes"}]},
            5,
            (320, 180),
            True,
        ),
    ],
)
def test_a_result_is_a_video_as_it_was_asked_for(
    emulator: KlingEmulator,
    caller: Caller,
    fields: dict[str, object],
    seconds: float,
    size: tuple[int, int],
    has_audio: bool,
) -> None:
    task_id = caller.create(**fields)
    emulator.complete(task_id)
    answer = get(caller.link(task_id))
    assert answer.headers["Content-Type"] == "video/mp4"
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    with av.open(io.BytesIO(answer.content), "r") as container:
        assert container.duration is not None
        assert container.duration / 1_000_000 == pytest.approx(seconds, abs=0.05)
        assert (container.streams.video[0].width, container.streams.video[0].height) == size
        assert bool(container.streams.audio) is has_audio
        pictures = [
            frame.to_image().convert("L")  # type: ignore[no-untyped-call]
            for frame in container.decode(video=0)
        ]
    assert pictures[0].tobytes() != pictures[-1].tobytes()
    assert all(picture.getextrema()[1] > 100 for picture in pictures)


def test_the_link_is_on_another_host_and_needs_no_key(
    emulator: KlingEmulator, caller: Caller, task_id: str
) -> None:
    link = caller.link(task_id)
    assert urlsplit(link).netloc != urlsplit(emulator.base_url).netloc
    assert get(link).status_code == 200
    assert emulator.ledger.key_leaks() == []


@pytest.mark.parametrize("place", ["authorization", "cookie", "query"])
def test_a_key_that_comes_with_a_download_is_told_on(
    emulator: KlingEmulator, caller: Caller, task_id: str, place: str
) -> None:
    link, key = caller.link(task_id), emulator.api_key
    if place == "authorization":
        get(link, Authorization="Bearer other")
    elif place == "cookie":
        get(link, Cookie=f"token={key}")
    else:
        get(f"{link}?key={key}")
    assert [leak.task_id for leak in emulator.ledger.key_leaks()] == [task_id]


def test_a_key_too_short_to_tell_anything_is_not_looked_for(clock: Clock) -> None:
    with KlingEmulator(api_key="a", clock=clock, latency=0) as emulator:
        caller = Caller(emulator)
        get(caller.link(caller.create()))
        assert emulator.ledger.key_leaks() == []


def test_a_download_can_be_taken_up_where_it_was_cut(caller: Caller, task_id: str) -> None:
    link = caller.link(task_id)
    whole = get(link)
    assert whole.headers["Accept-Ranges"] == "bytes"
    middle = len(whole.content) // 2
    rest = get(link, **{"Range": f"bytes={middle}-", "If-Range": whole.headers["Etag"]})
    assert rest.status_code == 206
    assert rest.headers["Content-Range"] == f"bytes {middle}-{len(whole.content) - 1}/{len(whole.content)}"
    assert whole.content[:middle] + rest.content == whole.content
    assert get(link, Range="bytes=-100").content == whole.content[-100:]
    assert get(link, Range=f"bytes={len(whole.content)}-").status_code == 416
    head = requests.head(link, timeout=120)
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(whole.content)))


def test_a_film_is_drawn_when_it_is_first_fetched_and_only_then(
    emulator: KlingEmulator, caller: Caller, task_id: str
) -> None:
    link = caller.link(task_id)
    assert emulator._films.drawn == 0
    answers = [get(link) for _ in range(3)]
    assert emulator._films.drawn == 1
    assert len({(answer.content, answer.headers["Etag"]) for answer in answers}) == 1
    assert emulator.ledger.task(task_id).downloads == 3


def test_a_link_answers_404_before_the_video_is_there_and_for_what_never_was(
    emulator: KlingEmulator, caller: Caller, task_id: str
) -> None:
    link = caller.link(task_id)
    running, failed = caller.create(), caller.create()
    emulator.fail(failed)
    for other in (running, failed, "cl1"):
        assert get(link.replace(task_id, other)).status_code == 404
    assert get(link.replace(".mp4", "-2.mp4")).status_code == 404


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_link_is_dead_after_7_days(
    emulator: KlingEmulator, caller: Caller, task_id: str, status: int
) -> None:
    emulator.configure(expired_status=status)
    link = caller.link(task_id)
    emulator.advance(7 * 86_400 - 1)
    assert get(link).status_code == 200
    emulator.advance(1)
    assert get(link).status_code == status
    assert caller.query(task_id)["resultUrls"] == [link]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_link_can_be_dead_from_the_start(emulator: KlingEmulator, caller: Caller, status: int) -> None:
    emulator.inject("expired_link", status=status)
    task_id = caller.create()
    emulator.complete(task_id)
    link = caller.link(task_id)
    assert [get(link).status_code for _ in range(2)] == [status, status]
    assert caller.link(task_id) == link


def test_or_be_renewed_by_the_next_query(emulator: KlingEmulator, caller: Caller) -> None:
    emulator.inject("expired_link", renews=True)
    task_id = caller.create(duration="3")
    emulator.complete(task_id)
    link = caller.link(task_id)
    assert caller.link(task_id) == link
    assert get(link).status_code == 404
    fresh = caller.link(task_id)
    assert fresh != link
    assert (get(link).status_code, get(fresh).status_code) == (404, 200)


def test_a_completed_task_can_be_without_a_link_for_a_while(emulator: KlingEmulator, caller: Caller) -> None:
    emulator.inject("no_link", queries=3)
    task_id = caller.create()
    emulator.complete(task_id)
    answers = [caller.query(task_id) for _ in range(5)]
    assert [answer["state"] for answer in answers] == ["completed"] * 5
    assert ["resultUrls" in answer for answer in answers] == [False, False, False, True, True]


class TestBrokenDownloads:
    def test_cut_in_the_middle_it_can_be_taken_up_with_a_range(
        self, emulator: KlingEmulator, caller: Caller, task_id: str
    ) -> None:
        link = caller.link(task_id)
        whole = get(link).content
        emulator.inject("cut", call="download", times=2)
        got = b""
        for _ in range(3):
            with requests.get(
                link, headers={"Range": f"bytes={len(got)}-"}, stream=True, timeout=120
            ) as answer:
                assert answer.status_code == 206
                with contextlib.suppress(ProtocolError):
                    while piece := answer.raw.read(4096):
                        got += piece
        assert got == whole

    def test_a_cut_is_seen_by_a_client_that_counts(
        self, emulator: KlingEmulator, caller: Caller, task_id: str
    ) -> None:
        emulator.inject("cut", call="download")
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            get(caller.link(task_id))

    def test_ranges_hold_in_stalled_answers_too(
        self, emulator: KlingEmulator, caller: Caller, task_id: str
    ) -> None:
        link = caller.link(task_id)
        whole = get(link).content
        emulator.inject("stall", call="download", seconds=0, times="always")
        assert get(link).content == whole
        assert get(link, Range="bytes=10-19").content == whole[10:20]
        assert get(link, Range="bytes=-7").content == whole[-7:]
        for wrong in (f"bytes={len(whole)}-", "pages=1-2", "bytes=20-10"):
            assert get(link, Range=wrong).status_code == 416

    def test_a_stalled_answer_pauses_in_its_middle(
        self, emulator: KlingEmulator, caller: Caller, task_id: str
    ) -> None:
        link = caller.link(task_id)
        emulator.inject("stall", call="download", seconds=600)
        with pytest.raises(requests.exceptions.RequestException, match="timed out"):
            requests.get(link, timeout=0.5)
        assert get(link).status_code == 200

    def test_it_can_be_answered_with_html_or_an_error(
        self, emulator: KlingEmulator, caller: Caller, task_id: str
    ) -> None:
        link = caller.link(task_id)
        emulator.inject("answer", call="download", status=200, body="html", message="Login <please>")
        emulator.inject("answer", call="download", status=503, prompt="sunset")
        page = get(link)
        assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html")
        assert "Login &lt;please&gt;" in page.text
        assert get(link).status_code == 503
        assert get(link).status_code == 200

    def test_it_can_be_slow(self, emulator: KlingEmulator, caller: Caller, task_id: str) -> None:
        link = caller.link(task_id)
        emulator.inject("slow", call="download", seconds=600)
        with pytest.raises(requests.exceptions.ReadTimeout):
            requests.get(link, timeout=0.5)

    def test_a_fault_and_an_expired_link_go_together(
        self, emulator: KlingEmulator, caller: Caller, task_id: str
    ) -> None:
        link = caller.link(task_id)
        emulator.advance(8 * 86_400)
        emulator.inject("stall", call="download", seconds=0)
        assert get(link).status_code == 404
