"""Ten thousand callbacks that no service sends: no 5xx for what can never be right, no hang, no growth."""

from __future__ import annotations

import gc
import json
import logging
import os
import time
import tracemalloc
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_kling.callbacks import PATH, CallbackToken
from airflow_provider_kling.plugins import accounts, admission
from airflow_provider_kling.plugins.callbacks import create_app
from tests.plugins.conftest import CONN_ID, body_of

pytestmark = pytest.mark.acceptance

INPUTS = int(os.environ.get("FUZZ_INPUTS", "0")) or 300
"""For each of two tests. FUZZ_INPUTS says how many; `make acceptance` has ten thousand in all."""
IN_A_HURRY = settings(
    max_examples=INPUTS,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
ANSWERS = {
    200: b'{"detail":"OK"}',
    404: b'{"detail":"Not Found"}',
    413: b'{"detail":"Content Too Large"}',
    503: b'{"detail":"Service Unavailable"}',
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=10), children, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = st.dictionaries(
    st.sampled_from(
        [
            *("taskId", "task_id", "state", "status", "model", "param", "resultJson", "failCode", "failMsg"),
            *("costTime", "completeTime", "createTime", "data", "code"),
        ]
    ),
    JSON | st.sampled_from(["completed", "failed", "clx1", 1e400, -1, 10**400]),
)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


BODIES = st.one_of(
    st.binary(max_size=2000),
    JSON.map(as_json),
    FIELDS.map(as_json),
    FIELDS.map(lambda data: as_json({"data": data})),
    FIELDS.map(lambda data: as_json({"data": {"taskId": "clx1", "state": "completed", **data}})),
    st.integers(1, 30_000).map(lambda depth: b'{"data":' * (depth // 8) + b"[" * depth),
    st.integers(0, 80_000).map(lambda size: b" " * size),
)


class Steady:
    """Counts what is answered, and how long and how much memory it takes."""

    def __init__(self) -> None:
        self.slowest = 0.0
        self.statuses: dict[int, int] = {}

    def note(self, answer: Any, began: float) -> None:
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.statuses[answer.status_code] = self.statuses.get(answer.status_code, 0) + 1
        assert answer.status_code in ANSWERS
        assert answer.content == ANSWERS[answer.status_code]


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Keep pytest from keeping a line for each of thousands of callbacks."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let strangers have as many look-ups as they like, or they would be told to come again."""
    for limit in ("STRANGE_LOOKUPS_A_MINUTE", "STRANGE_LOOKUPS_OF_ONE_ADDRESS"):
        monkeypatch.setattr(admission, limit, 10**9)


def test_whatever_comes_with_a_genuine_token_is_answered_in_one_of_four_ways(
    client: Any, service: Any, plenty: None
) -> None:
    steady = Steady()
    # No task has this id, so that each body gets as far as the database.
    tokens = [
        CallbackToken(uuid.uuid4(), "A" * 12, CONN_ID, is_listed).sign(service.api_key)
        for is_listed in (False, True)
    ]

    @IN_A_HURRY
    @given(BODIES, st.sampled_from(tokens))
    def holds(body: bytes, token: str) -> None:
        began = time.monotonic()
        answer = client.post(f"{PATH}/{token}", content=body)
        steady.note(answer, began)
        assert answer.status_code != 503

    holds()
    print(f"answers: {steady.statuses}; the slowest took {steady.slowest:.2f} s")
    assert set(steady.statuses) >= {200, 404, 413}


def test_whatever_comes_as_a_token_is_answered_alike(client: Any, service: Any, plenty: None) -> None:
    genuine = CallbackToken(uuid.uuid4(), "A" * 12, CONN_ID).sign(service.api_key)
    characters = "".join(sorted(set(genuine + "-_.~AZaz09")))
    tokens = st.one_of(
        st.text(st.sampled_from(characters), min_size=1, max_size=320),
        st.tuples(st.integers(0, len(genuine) - 1), st.sampled_from(characters)).map(
            lambda change: genuine[: change[0]] + change[1] + genuine[change[0] + 1 :]
        ),
        st.builds(
            lambda ti, name, conn, is_listed: CallbackToken(ti, name, conn, is_listed).sign("sk_guessed"),
            st.uuids(),
            st.text("ABCabc-_", min_size=12, max_size=12),
            st.text(min_size=1, max_size=12).filter(lambda text: text.isprintable()),
            st.booleans(),
        ),
    ).filter(lambda token: token not in (genuine, ".", ".."))
    steady = Steady()
    body = json.dumps(body_of("clx1")).encode()

    @IN_A_HURRY
    @given(tokens)
    def holds(token: str) -> None:
        began = time.monotonic()
        answer = client.post(f"{PATH}/{token}", content=body)
        steady.note(answer, began)
        assert answer.status_code == 404

    holds()
    print(f"answers: {steady.statuses}; the slowest took {steady.slowest:.2f} s")


def test_memory_does_not_grow_with_what_strangers_send(client: Any, service: Any, plenty: None) -> None:
    def flood(count: int) -> None:
        for number in range(count):
            conn_id = f"made_up_{uuid.uuid4().hex}"
            token = CallbackToken(uuid.uuid4(), "A" * 12, conn_id).sign("sk_guessed")
            client.post(f"{PATH}/{token}", content=b"x" * (number % 70_000))

    flood(accounts._MOST + 100)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        flood(300)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"grown by {(after - before) / 1024:.0f} KB in 300 callbacks")
    assert after - before < 300 * 1024


def test_it_answers_as_its_schema_says() -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    app = create_app()
    app.openapi_url = "/openapi.json"
    document = app.openapi()
    # What FastAPI promises for parameters that it reads itself; there is none that it refuses.
    document["paths"]["/{token}"]["post"]["responses"].pop("422", None)
    schema = schemathesis.openapi.from_dict(document)
    schema.app = app

    for operation in schema.get_all_operations():

        @settings(
            max_examples=min(INPUTS, 1_000),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.ok().as_strategy())
        def each(case: Any) -> None:
            case.call_and_validate(
                checks=[
                    not_a_server_error,
                    status_code_conformance,
                    content_type_conformance,
                    response_schema_conformance,
                ]
            )

        each()
