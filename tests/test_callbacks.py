"""The address of a callback, and the token in it."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from airflow.providers.common.compat.sdk import AirflowConfigException
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_kling.api.errors import ConnectionSettingsError
from airflow_provider_kling.callbacks import (
    MAX_TOKEN_LENGTH,
    PATH,
    CallbackAddress,
    CallbackToken,
    submission_name,
)
from airflow_provider_kling.ledger import Record, RecordState, SubmissionKey

BASE_URL = "AIRFLOW__KLING__CALLBACK_BASE_URL"
KEY = "sk_test_0123456789"
CONN_IDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=18)
TOKENS = st.builds(
    CallbackToken,
    st.uuids().filter(lambda found: found.int != 0),
    st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", min_size=12, max_size=12),
    CONN_IDS,
    st.booleans(),
)
RECORD = Record(
    key=SubmissionKey(dag_id="d", run_id="r", task_id="t", map_index=-1),
    fingerprint="f",
    state=RecordState.INTENT,
    generation=1,
    owner="o",
    intent_at=0,
    deadline=1,
)


@given(TOKENS, st.text(min_size=1))
def test_what_was_signed_is_read_back(token: CallbackToken, key: str) -> None:
    text = token.sign(key)
    assert CallbackToken.read(text) == token
    assert CallbackToken.is_signed(text, key)
    assert len(text) < 300


@given(TOKENS)
def test_it_needs_no_quoting_in_a_path_and_survives_being_unquoted(token: CallbackToken) -> None:
    text = token.sign(KEY)
    assert quote(text, safe="") == text
    assert "%" not in text
    assert "/" not in text


@given(TOKENS, st.text(min_size=1), st.text(min_size=1))
def test_another_key_has_not_signed_it(token: CallbackToken, key: str, other: str) -> None:
    assert CallbackToken.is_signed(token.sign(key), other) is (key == other)


@given(TOKENS, st.data())
def test_whatever_is_changed_makes_it_worthless(token: CallbackToken, data: st.DataObject) -> None:
    text = token.sign(KEY)
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.sampled_from("AQgw059-_.~%é")) + text[at + 1 :]
    if changed != text:
        assert CallbackToken.read(changed) is None or not CallbackToken.is_signed(changed, KEY)


@given(st.text())
def test_a_text_that_is_no_token_is_none(text: str) -> None:
    assert CallbackToken.read(text) is None


def test_the_key_is_not_in_it() -> None:
    text = CallbackToken(uuid.uuid4(), "A" * 12, "kling_default").sign(KEY)
    assert not any(KEY[at : at + 6] in text for at in range(len(KEY) - 5))


def test_a_connection_of_airflows_longest_id_has_a_token() -> None:
    token = CallbackToken(uuid.uuid4(), "A" * 12, "c" * 200)
    assert CallbackToken.read(token.sign(KEY)) == token
    assert len(token.sign(KEY)) <= MAX_TOKEN_LENGTH


def test_one_that_would_be_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        CallbackToken(uuid.uuid4(), "A" * 12, "ü" * 100).sign(KEY)


def test_a_check_is_about_no_task_and_each_is_another_one() -> None:
    first, second = CallbackToken.for_check("c").sign(KEY), CallbackToken.for_check("c").sign(KEY)
    assert first != second
    read = CallbackToken.read(first)
    assert read is not None
    assert read.is_for_check
    assert not CallbackToken(uuid.uuid4(), "A" * 12, "c").is_for_check


def test_two_submissions_of_one_task_have_two_names() -> None:
    names = {
        submission_name(RECORD.owner, RECORD.generation),
        submission_name("o", 2),
        submission_name("p", 1),
    }
    assert len(names) == 3
    # What comes later in its life does not change it.
    later = RECORD.model_copy(update={"state": RecordState.SUBMITTED, "kling_task_id": "k", "intent_at": 5.0})
    assert submission_name(later.owner, later.generation) == submission_name(RECORD.owner, RECORD.generation)


class Hook:
    kling_conn_id = "kling_default"

    class settings:  # noqa: N801
        key = KEY
        conn_type = "kling"


class TaskInstance:
    id = uuid.uuid4()


def address() -> CallbackAddress:
    context: Any = {"ti": TaskInstance()}
    hook: Any = Hook()
    return CallbackAddress(context, hook)


@pytest.mark.parametrize(
    ("base_url", "start"),
    [
        ("https://airflow.example.com", "https://airflow.example.com"),
        ("https://airflow.example.com/", "https://airflow.example.com"),
        (" http://10.0.0.1:8080/deep/path/ ", "http://10.0.0.1:8080/deep/path"),
    ],
)
def test_an_address_leads_to_the_receiver(monkeypatch: pytest.MonkeyPatch, base_url: str, start: str) -> None:
    monkeypatch.setenv(BASE_URL, base_url)
    url = address().of(RECORD)
    assert url.startswith(f"{start}{PATH}/")
    token = CallbackToken.read(urlsplit(url).path.rpartition("/")[2])
    assert token == CallbackToken(
        TaskInstance.id, submission_name(RECORD.owner, RECORD.generation), "kling_default"
    )


@pytest.mark.parametrize(
    "base_url",
    [
        None,
        "",
        "airflow.example.com",
        "ftp://airflow.example.com",
        "https://",
        "https://a b",
        "https://airflow.example.com?x=1",
        "https://airflow.example.com/#x",
        "https://user:secret@airflow.example.com",
        "https://airflow.example.com:port",
        "https://[::1",
    ],
)
def test_without_a_url_to_start_with_there_is_no_address(
    monkeypatch: pytest.MonkeyPatch, base_url: str | None
) -> None:
    monkeypatch.delenv(BASE_URL, raising=False)
    if base_url is not None:
        monkeypatch.setenv(BASE_URL, base_url)
    with pytest.raises(AirflowConfigException, match="callback_base_url") as error:
        address()
    assert "secret" not in str(error.value)


def test_a_connection_whose_id_is_too_long_is_told_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(BASE_URL, "https://airflow.example.com")
    monkeypatch.setattr(Hook, "kling_conn_id", "c" * 240)
    with pytest.raises(ConnectionSettingsError, match="too long"):
        address().of(RECORD)


@pytest.mark.parametrize("conn_type", ["http", ""])
def test_a_connection_of_another_type_is_told_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, conn_type: str
) -> None:
    monkeypatch.setenv(BASE_URL, "https://airflow.example.com")
    monkeypatch.setattr(Hook.settings, "conn_type", conn_type)
    with pytest.raises(ConnectionSettingsError, match=r"type 'kling'.*nothing was billed"):
        address().of(RECORD)


@pytest.mark.parametrize("character", ["\0", "\n", "\x1f", "\x7f", "\x85"])
def test_a_connections_id_holds_no_control_character(character: str) -> None:
    conn_id = f"kling{character}default"
    named = CallbackToken(uuid.uuid4(), "A" * 12, conn_id)._named
    assert CallbackToken.read("A" * 32 + named) is None
    with pytest.raises(ValueError, match="control character"):
        CallbackToken(uuid.uuid4(), "A" * 12, conn_id).sign(KEY)
