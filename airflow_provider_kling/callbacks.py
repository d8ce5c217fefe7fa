"""
The address that the service calls when a video is done, and the token in it.

A callback is unsigned, so whoever knows an address can call it. The token says whom a call is about and proves that
a worker of this Airflow made the address; it proves nothing about what the call says. Operators make it and the
receiver in the API server checks it; nothing here looks anything up.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote
from uuid import UUID, uuid4

from airflow.providers.common.compat.sdk import mask_secret

from airflow_provider_kling import config
from airflow_provider_kling.api.errors import ConnectionSettingsError
from airflow_provider_kling.api.protocol import CALLBACK_PATH
from airflow_provider_kling.hooks.settings import CONN_TYPE

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_kling.hooks.kling import KlingHook
    from airflow_provider_kling.hooks.settings import ConnectionSettings
    from airflow_provider_kling.ledger import Record

PATH = CALLBACK_PATH
"""Where the receiver is in Airflow's API server."""
MAX_TOKEN_LENGTH = 299
"""Longest token, characters."""
XCOM_CALLBACK = "kling_callback"
"""XCom key of what a task that did not wait leaves to its callback: the assets to tell."""
XCOM_OVER = "kling_videos_over"
"""XCom key of what callbacks leave to a task that makes many videos: which of these are over."""

_PURPOSE = b"airflow-provider-kling callback token, version 1"
_ALONE, _LISTED = "1", "2"
"""What kind of submission a token is about; further versions get further characters."""
_MAC_BYTES = 24
_SUBMISSION_BYTES = 9
_MAC_LENGTH, _TI_LENGTH, _SUBMISSION_LENGTH = 32, 22, 12
_HEAD = _MAC_LENGTH + len(_ALONE) + _TI_LENGTH + _SUBMISSION_LENGTH
_FORM = re.compile(rf"[A-Za-z0-9_-]{{{_HEAD}}}[A-Za-z0-9_.~-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NOBODY = UUID(int=0)


@dataclass(frozen=True)
class CallbackToken:
    """
    Whom a callback is about.

    :param ti_id: id of the task instance's attempt that asked for the video.
    :param submission: which of its submissions; see :func:`submission_name`.
    :param conn_id: the connection that it was asked for with.
    :param is_listed: whether the task makes many videos, and this is one of them.
    """

    ti_id: UUID
    submission: str
    conn_id: str
    is_listed: bool = False

    @classmethod
    def for_check(cls, conn_id: str) -> CallbackToken:
        """Make one that is about no task: a callback with it shows that callbacks arrive, and does nothing."""
        return cls(_NOBODY, _encoded(uuid4().bytes[:_SUBMISSION_BYTES]), conn_id)

    @property
    def is_for_check(self) -> bool:
        """Whether it is about no task."""
        return self.ti_id == _NOBODY

    def sign(self, key: str) -> str:
        """
        Return the token as text for a URL's path.

        :param key: the connection's key. It cannot be learnt from the text.
        :raises ValueError: where the connection's id is too long, or nothing that a database takes.
        """
        if _CONTROL.search(self.conn_id):
            raise ValueError(f"its id holds a control character: {self.conn_id!r}")
        named = self._named
        text = _mac(key, named) + named
        if len(text) > MAX_TOKEN_LENGTH:
            raise ValueError(f"its id is too long for a callback's address: {self.conn_id!r}")
        return text

    @classmethod
    def read(cls, text: str) -> CallbackToken | None:
        """Read what a token says, which :meth:`is_signed` has to check before it is believed. None where it is none."""
        if len(text) > MAX_TOKEN_LENGTH or not _FORM.fullmatch(text):
            return None
        kind = text[_MAC_LENGTH]
        if kind not in (_ALONE, _LISTED):
            return None
        ti_at = _MAC_LENGTH + len(kind)
        ti, submission = text[ti_at : ti_at + _TI_LENGTH], text[_HEAD - _SUBMISSION_LENGTH : _HEAD]
        try:
            token = cls(
                UUID(bytes=base64.urlsafe_b64decode(f"{ti}==")),
                submission,
                unquote(text[_HEAD:].replace("~", "%"), errors="strict"),
                is_listed=kind == _LISTED,
            )
        except (binascii.Error, ValueError):
            return None
        # A database refuses some of these with an error of its own.
        if _CONTROL.search(token.conn_id):
            return None
        # One address for one task: what reads the same but is spelt otherwise is none of ours.
        return token if token._named == text[_MAC_LENGTH:] else None

    @property
    def _named(self) -> str:
        kind = _LISTED if self.is_listed else _ALONE
        return f"{kind}{_encoded(self.ti_id.bytes)}{self.submission}{_escaped(self.conn_id)}"

    @staticmethod
    def is_signed(text: str, key: str) -> bool:
        """Tell, in a time that does not depend on the answer, whether a token was signed with a connection's key."""
        return hmac.compare_digest(text[:_MAC_LENGTH].encode(), _mac(key, text[_MAC_LENGTH:]).encode())


class CallbackAddress:
    """
    Makes the addresses of one attempt's callbacks.

    :param context: Airflow's context of the task.
    :param hook: the service.
    :param item: of a task that makes many videos: the name of this one's entry in the ledger.
    :raises AirflowConfigException: where ``[kling] callback_base_url`` is missing or wrong.
    """

    def __init__(self, context: Context, hook: KlingHook, item: str = "") -> None:
        ti: Any = context["ti"]
        self._ti_id = UUID(str(ti.id))
        self._hook = hook
        self._item = item
        self._base_url = config.require_callback_base_url()

    def of(self, record: Record) -> str:
        """
        Return where the service is to post what becomes of a submission.

        :param record: its intent in the ledger.
        :raises ConnectionSettingsError: where the receiver would not take the connection.
        """
        conn_id, settings = self._hook.kling_conn_id, self._hook.settings
        submission = submission_name(record.owner, record.generation, self._item)
        token = CallbackToken(self._ti_id, submission, conn_id, is_listed=bool(self._item))
        try:
            check_conn_type(settings)
            text = token.sign(settings.key)
        except ValueError as error:
            raise ConnectionSettingsError(
                f"Connection {conn_id!r}: {error}",
                next_step="Nothing was sent and nothing was billed. Correct the connection, or set callback=False.",
            ) from None
        mask_secret(text)  # whoever has it can pretend to be the service
        return url_of(self._base_url, text)


def check_conn_type(settings: ConnectionSettings) -> None:
    """
    See whether the receiver takes callbacks for a connection.

    :raises ValueError: where it does not.
    """
    if settings.conn_type != CONN_TYPE:
        raise ValueError(
            f"it is of type {settings.conn_type!r}, and callbacks are taken only for one of type {CONN_TYPE!r}"
        )


def url_of(base_url: str, token: str) -> str:
    """Return the address for a token, below the public URL of Airflow's API server."""
    return f"{base_url}{PATH}/{token}"


def submission_name(owner: str, generation: int, item: str = "") -> str:
    """
    Return what tells one submission apart from all others, the earlier ones of the same task included.

    :param owner: of its record in the ledger.
    :param generation: of the same.
    :param item: the name of the record's entry, where a task makes many videos.
    """
    named = f"{owner}:{generation}:{item}" if item else f"{owner}:{generation}"
    digest = hashlib.sha256(named.encode()).digest()
    return _encoded(digest[:_SUBMISSION_BYTES])


def _mac(key: str, named: str) -> str:
    derived = hmac.digest(key.encode(), _PURPOSE, "sha256")
    return _encoded(hmac.digest(derived, named.encode(), "sha256")[:_MAC_BYTES])


def _encoded(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _escaped(conn_id: str) -> str:
    # A per cent sign in a path is decoded by proxies and servers, some of them twice.
    return quote(conn_id, safe="").replace("~", "%7E").replace("%", "~")
