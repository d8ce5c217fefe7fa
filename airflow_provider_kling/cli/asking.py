"""Reads what is asked for from a command line."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow_provider_kling.api.errors import InvalidRequestError
from airflow_provider_kling.api.request import Fault, VideoRequest


class UsageError(Exception):
    """What was typed cannot be done; nothing was sent."""


def requests_in(given: Namespace) -> tuple[list[VideoRequest], bool]:
    """
    Read the requests that a command line holds.

    :return: the requests, and whether they were given as a list.
    :raises UsageError: where there is none, or the JSON cannot be read.
    :raises InvalidRequestError: with every fault of every request.
    """
    flags = _from_flags(given)
    if given.request is None:
        if not flags:
            raise UsageError("Nothing is asked for: give --prompt, or a whole request with --request.")
        return [VideoRequest(**flags)], False
    told = _from_json(given.request)
    is_list = isinstance(told, list)
    if is_list and not told:
        raise UsageError("The list of requests is empty.")
    requests, faults = [], []
    for place, one in enumerate(told if is_list else [told]):
        where = f"request[{place}]." if is_list else ""
        fields = {"prompt": one} if isinstance(one, str) else one
        if not isinstance(fields, Mapping):
            raise UsageError(
                f"A request is an object of request fields or a prompt, not {json.dumps(one)[:80]}."
            )
        try:
            requests.append(VideoRequest(**_laid_over(fields, flags)))
        except InvalidRequestError as error:
            faults += [replace(fault, field=f"{where}{fault.field}") for fault in error.faults]
        except TypeError:  # a name that Python keeps for itself
            faults.append(Fault(f"{where}self", fields.get("self"), "no such field"))
    if faults:
        raise InvalidRequestError(faults)
    return requests, is_list


def _from_flags(given: Namespace) -> dict[str, Any]:
    fields = {
        name: value for name in VideoRequest.model_fields if (value := getattr(given, name, None)) is not None
    }
    if "extra_body" in fields:
        fields["extra_body"] = _parsed(fields["extra_body"], "--extra-body")
    if "multi_prompt" in fields or "shot_type" in fields:
        fields["multi_shot"] = True
    if "multi_prompt" in fields:
        fields.setdefault("shot_type", "customize")
    if given.keep_original_sound is not None:
        if "video_list" not in fields:
            raise UsageError(
                "--keep-original-sound is about a video: give --base-video or --feature-video too."
            )
        keep = "yes" if given.keep_original_sound else "no"
        fields["video_list"] = [video | {"keep_original_sound": keep} for video in fields["video_list"]]
    return fields


def _laid_over(fields: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    return {**fields, **flags}


def _from_json(given: str) -> Any:
    if given.lstrip()[:1] in ("{", "[", '"'):
        return _parsed(given, "--request")
    if given == "-":
        return _parsed(sys.stdin.read(), "standard input")
    try:
        text = Path(given).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(f"--request: {given[:200]!r} cannot be read: {error}") from None
    return _parsed(text, given)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}") from None
