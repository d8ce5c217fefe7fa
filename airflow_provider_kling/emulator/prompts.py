"""Finds videos by what their prompts say: the service has no other place to mark a request with."""

from __future__ import annotations

import re
from functools import lru_cache


def mentions(prompt: str, words: str) -> bool:
    """Tell whether a prompt holds the words as whole ones: ``video-1`` is not found in ``video-10``."""
    return _pattern(words).search(prompt) is not None


@lru_cache(maxsize=256)
def _pattern(words: str) -> re.Pattern[str]:
    # Letters of ASCII only: scripts that write without spaces have no ends of words to look for.
    before = r"(?<![0-9A-Za-z_])" if re.match(r"[0-9A-Za-z_]", words) else ""
    after = r"(?![0-9A-Za-z_])" if re.search(r"[0-9A-Za-z_]\Z", words) else ""
    return re.compile(before + re.escape(words) + after)


def prompt_of(body: object) -> str:
    """Return a request's prompt and those of its shots, a line each; nothing where the body is no request."""
    if not isinstance(body, dict):
        return ""
    shots = body.get("multi_prompt")
    texts = [body.get("prompt")]
    texts += (
        [shot.get("prompt") for shot in shots if isinstance(shot, dict)] if isinstance(shots, list) else []
    )
    return "\n".join(text for text in texts if isinstance(text, str) and text)
