"""Which bytes of a file an HTTP request asks for, by RFC 9110. Pure: nothing is read, and no header raises."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_MOST_DIGITS = 18
"""A number with more of them is beyond every file, and Python would refuse to read one with thousands."""


@dataclass(frozen=True)
class Wanted:
    """
    What to answer.

    :param status: 200, 206, 304, 412 or 416.
    :param start: the first byte. :param stop: the first one after the last.
    """

    status: int
    start: int = 0
    stop: int = 0

    @property
    def length(self) -> int:
        """How many bytes."""
        return self.stop - self.start


def wanted(method: str, headers: Mapping[str, str], *, size: int, tag: str) -> Wanted:
    """
    Return what a request asks for.

    Ranges that are malformed, or several in one request, count as none, as the RFC allows: the whole file is answered.

    :param method: ``GET`` or ``HEAD``, of which only the first knows ranges.
    :param headers: the request's; names in small letters.
    :param size: the file's, bytes.
    :param tag: its strong entity tag, in quotes.
    """
    if (expected := headers.get("if-match")) is not None and not _is_among(tag, expected, weakly=False):
        return Wanted(412)
    if (known := headers.get("if-none-match")) is not None and _is_among(tag, known, weakly=True):
        return Wanted(304)
    whole = Wanted(200, 0, size)
    asked = headers.get("range")
    if method != "GET" or asked is None or not _is_same(headers.get("if-range"), tag):
        return whole
    return _part(asked, size) or whole


def _part(asked: str, size: int) -> Wanted | None:
    found = _RANGE.fullmatch(asked)
    if found is None or found[1] == found[2] == "":
        return None
    first, last = _number(found[1]), _number(found[2])
    if first is None:
        assert last is not None  # noqa: S101 - one of them is there
        return Wanted(206, max(0, size - last), size) if last and size else Wanted(416)
    if last is not None and last < first:
        return None
    if first >= size:
        return Wanted(416)
    return Wanted(206, first, size if last is None else min(last + 1, size))


def _number(digits: str) -> int | None:
    if not digits:
        return None
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= _MOST_DIGITS else 10**_MOST_DIGITS


def _is_same(if_range: str | None, tag: str) -> bool:
    # A date matches nothing: there is no Last-Modified to match. Nor does a weak tag.
    return if_range is None or if_range.strip() == tag


def _is_among(tag: str, told: str, *, weakly: bool) -> bool:
    if told.strip() == "*":
        return True
    return any(found[1] == tag and (weakly or not found[0].startswith("W/")) for found in _TAG.finditer(told))
