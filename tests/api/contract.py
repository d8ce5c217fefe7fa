"""
The service's rules for a request, written a second time.

Nothing here looks at the package: the tests compare what the two say. It judges the JSON body as it would go
over the wire, and prefers plainness to good messages.
"""

from __future__ import annotations

import base64
import re
from typing import Any

LONGEST = {"kling-video-o1": 10, "kling-v3-omni": 15}


def rules_broken_by(body: dict[str, Any]) -> list[str]:
    """Name each rule that a body breaks; one of an unknown model is judged only by what holds for all."""
    broken: list[str] = []

    def demand(holds: bool, rule: str) -> None:
        if not holds:
            broken.append(rule)

    model = body["model"]
    known, o1 = model in LONGEST, model == "kling-video-o1"
    prompt, sound, duration = body.get("prompt"), body.get("sound"), body.get("duration")
    images = body.get("image_list") or []
    elements = body.get("element_list") or []
    videos = body.get("video_list") or []
    shots = body.get("multi_prompt") or []
    several, kind = body.get("multi_shot"), body.get("shot_type")
    storyboard = several is True and kind == "customize"

    # words
    demand(storyboard or bool(prompt and prompt.strip()), "a prompt is needed")
    demand(not known or len(prompt or "") <= 2500, "a prompt has 2,500 characters at the most")
    there = (
        {f"image_{i + 1}" for i in range(len(images))}
        | {f"element_{i + 1}" for i in range(len(elements))}
        | {f"video_{i + 1}" for i in range(len(videos))}
    )
    for text in (prompt or "", *(shot["prompt"] for shot in shots)):
        for rest in text.split("<<<")[1:]:
            name, closed, _ = rest.partition(">>>")
            demand(not closed or name in there, "what a prompt names is there")

    # words of a fixed set
    demand(not known or body.get("mode") in (None, "std", "pro"), "mode")
    demand(not known or body.get("aspect_ratio") in (None, "16:9", "9:16", "1:1"), "aspect ratio")
    demand(sound is None or isinstance(sound, bool) or sound in ("on", "off"), "sound")
    demand(kind in (None, "customize", "intelligence"), "shot type")

    # seconds
    demand(duration is None or _is_seconds(duration), "duration is whole seconds")
    if known and duration is not None and _is_seconds(duration):
        demand(3 <= int(duration) <= LONGEST[model], "duration")

    # references
    demand(not (videos and sound in ("on", True)), "sound is off with a reference video")
    types = [image.get("type") for image in images]
    first, end = types.count("first_frame"), types.count("end_frame")
    demand(all(kind in (None, "first_frame", "end_frame") for kind in types), "image type")
    demand(first <= 1, "one first frame")
    demand(end <= 1, "one end frame")
    demand(not end or first > 0, "an end frame needs a first frame")
    base = [video for video in videos if video.get("refer_type", "base") == "base"]
    demand(not (first or end) or not base, "no frame beside a base video")
    demand(not (first or end) or several is not True, "no frame with several shots")
    demand(not (o1 and end and len(images) > 2), "O1: no end frame with more than 2 images")
    if known and (first or end):
        demand(len(elements) <= (0 if o1 and end else 3), "elements beside frames")
    demand(not known or len(images) + len(elements) <= (4 if videos else 7), "references together")
    demand(all(_is_image(image["image_url"]) for image in images), "an image is a URL or Base64")
    demand(all(type(element["element_id"]) is int for element in elements), "element ids are integers")
    demand(not known or len(videos) <= 1, "one video")
    for video in videos:
        demand(_is_url(video["video_url"]), "a video is a URL")
        demand(video.get("refer_type") in (None, "base", "feature"), "refer type")
        demand(video.get("keep_original_sound") in (None, "yes", "no"), "original sound")

    # several shots
    demand(not o1 or not (several or kind or shots), "O1 makes one shot")
    demand(several is not True or kind is not None, "several shots need a shot type")
    demand(kind is None or several is True, "a shot type needs several shots")
    demand(not shots or storyboard, "shots need customize")
    if storyboard:
        demand(1 <= len(shots) <= 6 if known else len(shots) >= 1, "1 to 6 shots")
        demand(all(not known or len(shot["prompt"]) <= 512 for shot in shots), "a shot's prompt")
        total = sum(int(shot["duration"]) for shot in shots if _is_seconds(shot["duration"]))
        demand(not _is_seconds(duration or "5") or total == int(duration or "5"), "shots add up")
        places = [shot.get("index", place) for place, shot in enumerate(shots, start=1)]
        demand(sorted(places) == list(range(1, len(shots) + 1)), "shots are numbered")
    for shot in shots:
        demand(bool(shot["prompt"].strip()), "a shot has a prompt")
        demand(
            _is_seconds(shot["duration"]) and int(shot["duration"]) >= (1 if storyboard else 0),
            "a shot's second",
        )

    demand("callback_url" not in body or _is_url(body["callback_url"]), "callback URL")
    return broken


_FIELDS: dict[str, type | dict[str, type]] = {
    "model": str,
    "prompt": str,
    "mode": str,
    "duration": str,
    "aspect_ratio": str,
    "sound": str,
    "image_list": {"image_url": str, "type": str},
    "element_list": {"element_id": int},
    "video_list": {"video_url": str, "refer_type": str, "keep_original_sound": str},
    "multi_shot": bool,
    "shot_type": str,
    "multi_prompt": {"index": int, "prompt": str, "duration": str},
    "callback_url": str,
}


def misshapen_in(body: dict[str, Any]) -> list[str]:
    """Name what is not in the very form that the service documents: types, names, nothing empty."""
    wrong = []
    for name, value in body.items():
        form = _FIELDS.get(name)
        if name == "watermark_info":
            fits = list(value) == ["enabled"] and type(value["enabled"]) is bool
        elif isinstance(form, dict):
            fits = type(value) is list and bool(value)
            for entry in value:
                fits = fits and bool(entry) and all(type(entry[key]) is form.get(key) for key in entry)
        else:
            fits = type(value) is form and value != ""
        if not fits:
            wrong.append(name)
    if not _is_seconds(body.get("duration", "5")):
        wrong.append("duration")
    if body.get("sound", "on") not in ("on", "off"):
        wrong.append("sound")
    return wrong


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, str) and re.fullmatch("[0-9]{1,4}", str(value)) is not None


def _is_url(value: str) -> bool:
    return re.fullmatch(r"https?://[^\s/]+(/\S*)?", value) is not None


def _is_image(value: str) -> bool:
    if _is_url(value):
        return True
    try:
        content = base64.b64decode(value, validate=True)
    except ValueError:
        return False
    return content[:3] == b"\xff\xd8\xff" or content[:8] == b"\x89PNG\r\n\x1a\n"
