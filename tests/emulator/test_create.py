"""What the service takes and refuses, over HTTP."""

from __future__ import annotations

import base64
import io
from decimal import Decimal
from typing import Any

import pytest
import requests
from PIL import Image

from airflow_provider_kling.emulator import KlingEmulator
from tests.emulator.caller import PROMPT, Caller

ELSEWHERE = "https://example.com/picture.png"


def picture(width: int = 400, height: int = 400, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 80, 20)).save(file, form)
    return file.getvalue()


def text_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.mark.parametrize("base_path", ["/api/v1", "/v1"])
def test_both_base_paths_serve_the_same_calls(emulator: KlingEmulator, base_path: str) -> None:
    caller = Caller(emulator, base_path=base_path)
    task_id = caller.create()
    assert caller.query(task_id)["taskId"] == task_id
    assert caller.record(task_id)["settled"] is False
    assert caller.balance()["currency"] == "USD"
    models = caller.get("/models").json()["data"]
    assert {model["id"] for model in models} == {"kling-video-o1", "kling-v3-omni"}
    assert caller.upload("picture.png", picture()).status_code == 200


def test_a_task_is_created_as_the_documentation_shows(caller: Caller) -> None:
    answer = caller.post(model="kling-video-o1", mode="std", duration="5", aspect_ratio="16:9")
    body = answer.json()
    assert answer.headers["Content-Type"].startswith("application/json")
    assert body == {
        "code": 200,
        "msg": "success",
        "data": {
            "taskId": body["data"]["taskId"],
            "state": "pending",
            "model": "kling-video/kling-video-o1",
        },
    }
    assert body["data"]["taskId"].startswith("cl")
    assert body["data"]["taskId"].isalnum()


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "bearer {key}", "{key}", "Bearer {key} ", "Basic {key}"],
)
def test_without_the_right_key_every_call_is_refused(
    emulator: KlingEmulator, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.format(key=emulator.api_key)}
    # requests cuts white space off the ends of headers, which would make the key right again.
    headers = {name: value for name, value in headers.items() if value == value.strip()}
    for method, path in (
        ("POST", "/video/generations"),
        ("GET", "/video/generations?task_id=cl1"),
        ("POST", "/files"),
        ("GET", "/balance"),
        ("GET", "/records/cl1"),
        ("GET", "/models"),
    ):
        answer = requests.request(method, emulator.base_url + path, headers=headers, json={}, timeout=120)
        assert answer.status_code == answer.json()["code"] == 401
        assert "key" in answer.json()["msg"]
    assert emulator.ledger.tasks() == []


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 2501}, "2500 characters"),
        ({"duration": "16"}, "3 to 15 seconds"),
        ({"model": "kling-video-o1", "duration": "11"}, "3 to 10 seconds"),
        ({"duration": 5}, 'duration must be written as "5"'),
        ({"sound": True}, 'sound must be written as "on"'),
        ({"mode": None}, "mode must be left out rather than null"),
        ({"multi_shot": "false"}, "multi_shot must be written as false"),
        ({"image_list": [ELSEWHERE]}, "image_list must be written as"),
        ({"aspect_ratio": "4:3"}, "aspect_ratio"),
        ({"mode": "ultra"}, "mode"),
        ({"prompt": "look at <<<image_1>>>"}, "image_list has no entries"),
        ({"sound": "on", "video_list": [{"video_url": "https://example.com/v.mp4"}]}, "sound"),
        ({"model": "kling-v9"}, "'kling-v9' is not supported"),
        ({"model": ""}, "model is missing"),
        ({"model": 5}, "model is missing"),
        ({"callback_url": "not a url"}, "callback_url"),
    ],
)
def test_a_wrong_request_is_refused_with_400_and_makes_no_task(
    emulator: KlingEmulator, caller: Caller, fields: dict[str, Any], told: str
) -> None:
    answer = caller.post(**fields)
    assert answer.status_code == answer.json()["code"] == 400
    assert told in answer.json()["msg"]
    assert emulator.ledger.tasks() == []
    assert [create.status for create in emulator.ledger.creates()] == [400]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"null", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused_with_400(caller: Caller, body: bytes) -> None:
    answer = caller.session.post(f"{caller.base}/video/generations", data=body, timeout=120)
    assert answer.status_code == answer.json()["code"] == 400


@pytest.mark.parametrize("field", ["image_list", "new_field"])
@pytest.mark.parametrize("levels", [40, 900])
def test_a_body_that_is_nested_too_deeply_is_refused_with_400(
    caller: Caller, field: str, levels: int
) -> None:
    body = f'{{"model": "kling-v3-omni", "prompt": "x", "{field}": {"[" * levels}{"]" * levels}}}'
    answer = caller.session.post(f"{caller.base}/video/generations", data=body, timeout=120)
    assert answer.status_code == answer.json()["code"] == 400


def test_fields_that_the_service_does_not_know_are_ignored(emulator: KlingEmulator, caller: Caller) -> None:
    caller.create(camera_control={"type": "simple"}, cfg_scale=0.5)
    (task,) = emulator.ledger.tasks()
    assert task.body["cfg_scale"] == 0.5


def test_a_further_model_is_taken_at_its_own_price_when_it_is_set(
    emulator: KlingEmulator, caller: Caller
) -> None:
    emulator.configure(extra_models={"kling-v4": Decimal("0.5")})
    caller.create(model="kling-v4", duration="20", mode="ultra", aspect_ratio="21:9")
    caller.create(model="kling-v4", video_list=[{"video_url": "https://example.com/v.mp4"}])
    assert [task.price_usd for task in emulator.ledger.tasks()] == [Decimal("10.0"), Decimal("2.5")]
    assert "kling-v4" in {model["id"] for model in caller.get("/models").json()["data"]}


def test_the_prompts_of_the_shots_count_as_the_prompt(emulator: KlingEmulator, caller: Caller) -> None:
    shots = [
        {"index": 1, "prompt": "first [shot-1]", "duration": "2"},
        {"index": 2, "prompt": "second [shot-2]", "duration": "3"},
    ]
    body = {"model": "kling-v3-omni", "multi_shot": True, "shot_type": "customize", "multi_prompt": shots}
    answer = caller.session.post(f"{caller.base}/video/generations", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    assert len(emulator.ledger.tasks("shot-1")) == len(emulator.ledger.creates("shot-2")) == 1


class TestReferences:
    def failure(
        self, emulator: KlingEmulator, caller: Caller, **fields: Any
    ) -> tuple[str | None, str | None]:
        task_id = caller.create(**fields)
        task = emulator.ledger.task(task_id)
        return task.fail_code, task.fail_message

    def uploaded(self, caller: Caller, name: str, content: bytes) -> str:
        return str(caller.upload(name, content).json()["data"]["publicUrl"])

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (picture(299, 400), "at least 300"),
            (picture(300, 751), "between 1:2.5 and 2.5:1"),
            (picture(300, 300, "JPEG")[:40], "cannot be read"),
        ],
    )
    def test_an_image_outside_the_limits_fails_the_task(
        self, emulator: KlingEmulator, caller: Caller, content: bytes, told: str
    ) -> None:
        for image in (text_of(content), self.uploaded(caller, "x.png", content)):
            code, message = self.failure(emulator, caller, image_list=[{"image_url": image}])
            assert code == "INVALID_INPUT"
            assert told in str(message)

    def test_an_image_within_the_limits_is_used(self, emulator: KlingEmulator, caller: Caller) -> None:
        content = picture(300, 750, "JPEG")
        for image in (text_of(content), self.uploaded(caller, "x.jpg", content), ELSEWHERE):
            assert self.failure(emulator, caller, image_list=[{"image_url": image}]) == (None, None)

    def test_the_ledger_keeps_only_the_beginning_of_an_image(
        self, emulator: KlingEmulator, caller: Caller
    ) -> None:
        noise = Image.effect_noise((400, 400), 90)
        file = io.BytesIO()
        noise.save(file, "PNG")
        task_id = caller.create(image_list=[{"image_url": text_of(file.getvalue()), "type": "first_frame"}])
        (image,) = emulator.ledger.task(task_id).body["image_list"]
        assert len(image["image_url"]) < 2100
        assert image["image_url"].endswith("characters)")
        assert image["type"] == "first_frame"

    def test_what_is_no_video_cannot_be_edited_and_what_is_no_image_cannot_be_shown(
        self, emulator: KlingEmulator, caller: Caller
    ) -> None:
        image = self.uploaded(caller, "x.png", picture())
        code, message = self.failure(emulator, caller, video_list=[{"video_url": image}])
        assert (code, "is no video" in str(message)) == ("INVALID_INPUT", True)
        film = caller.create()
        emulator.complete(film)
        code, message = self.failure(emulator, caller, image_list=[{"image_url": caller.link(film)}])
        assert (code, "is no image" in str(message)) == ("INVALID_INPUT", True)

    def test_an_edited_video_is_as_long_as_the_one_it_is_made_from_and_is_billed_so(
        self, emulator: KlingEmulator, caller: Caller
    ) -> None:
        first = caller.create(duration="8")
        emulator.complete(first)
        base = {"video_url": caller.link(first), "refer_type": "base", "keep_original_sound": "yes"}
        second = caller.create(video_list=[base])
        task = emulator.ledger.task(second)
        assert (task.seconds, task.fail_code) == (8.0, None)
        assert task.price_usd == Decimal("0.0853") * 8

    def test_a_video_elsewhere_is_taken_to_be_as_long_as_the_settings_say(
        self, emulator: KlingEmulator, caller: Caller
    ) -> None:
        emulator.configure(base_video_seconds=9.6)
        task_id = caller.create(video_list=[{"video_url": "https://example.com/v.mp4"}])
        assert emulator.ledger.task(task_id).seconds == 9.6
        assert emulator.ledger.task(task_id).price_usd == Decimal("0.0633") * 10

    def test_a_video_for_its_style_leaves_the_length_to_the_request(
        self, emulator: KlingEmulator, caller: Caller
    ) -> None:
        style = {"video_url": "https://example.com/v.mp4", "refer_type": "feature"}
        assert emulator.ledger.task(caller.create(video_list=[style], duration="12")).seconds == 12

    def test_a_result_that_is_not_ready_or_has_expired_cannot_be_a_reference(
        self, emulator: KlingEmulator, caller: Caller
    ) -> None:
        first = caller.create()
        emulator.complete(first)
        base = {"video_url": caller.link(first)}
        emulator.advance(7 * 86_400)
        assert self.failure(emulator, caller, video_list=[base])[0] == "INVALID_INPUT"
        running = {"video_url": base["video_url"].replace(first, caller.create())}
        assert self.failure(emulator, caller, video_list=[running])[0] == "INVALID_INPUT"

    def test_an_upload_that_has_expired_cannot_be_a_reference(
        self, emulator: KlingEmulator, caller: Caller
    ) -> None:
        image = self.uploaded(caller, "x.png", picture())
        emulator.advance(7 * 86_400)
        code, message = self.failure(emulator, caller, image_list=[{"image_url": image}])
        assert (code, "has expired" in str(message)) == ("INVALID_INPUT", True)

    def test_links_that_look_like_its_own_but_are_not_are_taken_as_from_elsewhere(
        self, emulator: KlingEmulator, caller: Caller
    ) -> None:
        for url in ("https://example.com/videos/abc.mp4", "https://example.com/uploads/abc.mp4"):
            assert self.failure(emulator, caller, video_list=[{"video_url": url}]) == (None, None)

    def test_checks_can_be_turned_off(self, emulator: KlingEmulator, caller: Caller) -> None:
        emulator.configure(check_references=False)
        small = picture(10, 10)
        for image in (text_of(small), self.uploaded(caller, "x.png", small)):
            assert self.failure(emulator, caller, image_list=[{"image_url": image}]) == (None, None)


class TestUploads:
    def test_an_upload_is_served_under_a_link_that_needs_no_key(self, caller: Caller) -> None:
        content = picture()
        answer = caller.upload("picture.png", content)
        link = answer.json()["data"]["publicUrl"]
        assert not link.startswith(caller.base)
        found = requests.get(link, timeout=120)
        assert (found.status_code, found.content) == (200, content)
        assert found.headers["Content-Type"] == "image/png"

    @pytest.mark.parametrize(
        ("content", "told"),
        [(b"GIF89a" + bytes(40), "jpg, png, mp4 and mov"), (b"", "jpg, png, mp4 and mov")],
    )
    def test_other_kinds_of_files_are_refused(self, caller: Caller, content: bytes, told: str) -> None:
        answer = caller.upload("x.png", content)
        assert answer.status_code == 400
        assert told in answer.json()["msg"]

    def test_a_file_above_the_services_limit_is_refused(
        self, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("airflow_provider_kling.emulator.app.MAX_VIDEO_BYTES", 200_000)
        answer = caller.upload("x.mp4", b"\0\0\0\x18ftypmp42" + bytes(300_000))
        assert answer.status_code == 400
        assert "too large" in answer.json()["msg"]

    def test_a_body_without_the_file_is_refused(self, caller: Caller) -> None:
        url = f"{caller.base}/files"
        missing = caller.session.post(url, files={"other": b"x"}, timeout=120)
        plain = caller.session.post(url, json={"file": "x"}, timeout=120)
        broken = caller.session.post(
            url, data=b"--x\r\n", headers={"Content-Type": "multipart/form-data"}, timeout=120
        )
        assert [missing.status_code, plain.status_code, broken.status_code] == [400, 400, 400]

    def test_a_link_to_no_upload_answers_404(self, emulator: KlingEmulator) -> None:
        assert requests.get(f"{emulator.origin}/uploads/abc.png", timeout=120).status_code == 404

    def test_an_upload_is_gone_after_7_days(self, emulator: KlingEmulator, caller: Caller) -> None:
        link = caller.upload("picture.png", picture()).json()["data"]["publicUrl"]
        emulator.advance(7 * 86_400 - 1)
        assert requests.get(link, timeout=120).status_code == 200
        emulator.advance(1)
        assert requests.get(link, timeout=120).status_code == 404


def test_a_path_that_the_service_does_not_have_answers_404_in_its_form(
    emulator: KlingEmulator, caller: Caller
) -> None:
    for method, path in (("GET", "/nothing"), ("DELETE", "/video/generations"), ("GET", "/balance/")):
        answer = caller.session.request(method, caller.base + path, timeout=120)
        assert answer.status_code == answer.json()["code"] == 404
    assert emulator.ledger.count("unknown") == 3
    assert requests.get(f"{emulator.origin}/", timeout=120).status_code == 404


def test_the_prompt_is_what_the_request_says(emulator: KlingEmulator, caller: Caller) -> None:
    assert emulator.ledger.task(caller.create()).prompt == PROMPT


def test_a_path_is_no_reference_for_a_service_that_cannot_see_it(caller: Caller) -> None:
    for fields in (
        {"image_list": [{"image_url": "/data/a.png"}]},
        {"video_list": [{"video_url": "s3://b/v.mp4"}]},
    ):
        answer = caller.post(**fields)
        assert answer.json()["code"] == 400
        assert "neither a URL nor Base64" in answer.text
