"""The judge of the chaos run: it must see what must not be, or the run proves nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.evidence import last_errors, log_file
from tests.cluster.judge import (
    AirflowSide,
    Outcome,
    ServiceSide,
    ServiceTask,
    Verdict,
    judge,
    key_of,
    mark_in,
    mark_of,
)

MARK = mark_of("dag", "run", "task", -1)


def completed(task_id: str = "clA", times_billed: int = 1) -> ServiceTask:
    return ServiceTask(task_id, "completed", times_billed)


def failed(fail_code: str, task_id: str = "clF") -> ServiceTask:
    return ServiceTask(task_id, "failed", 0, fail_code)


def succeeded(task_id: str = "clA", state: str = "completed") -> AirflowSide:
    return AirflowSide(MARK, "success", returned={"task_id": task_id, "state": state})


def ended(*errors: tuple[str, str]) -> AirflowSide:
    return AirflowSide(MARK, "failed", tries=3, errors=errors)


def verdict_on(task: AirflowSide, *tasks: ServiceTask, refusals: tuple[int, ...] = ()) -> Verdict:
    return judge([task], {MARK: ServiceSide(tasks, refusals)})


def counts(verdict: Verdict) -> dict[str, int]:
    return {name: count for name, count in verdict.rows() if count}


def test_a_video_that_was_paid_once_and_arrived_is_delivered() -> None:
    verdict = verdict_on(succeeded(), completed())
    assert counts(verdict) == {"videos asked for": 1, "delivered": 1}
    assert verdict.is_clean


def test_a_video_that_was_paid_twice_is_seen_although_it_arrived() -> None:
    verdict = verdict_on(succeeded("clB"), completed("clA"), completed("clB"))
    assert counts(verdict) == {"videos asked for": 1, "delivered": 1, "paid twice": 1}
    assert not verdict.is_clean


def test_a_task_that_was_billed_twice_is_paid_twice() -> None:
    assert verdict_on(succeeded(), completed(times_billed=2)).paid_twice == 1


def test_a_second_video_after_an_unknown_outcome_is_paid_twice_as_well() -> None:
    verdict = verdict_on(ended(("UnknownSubmissionError", "…")), completed("clA"), completed("clB"))
    assert verdict.paid_twice == 1


def test_a_second_video_after_one_that_failed_is_paid_once() -> None:
    assert verdict_on(succeeded(), failed("UPSTREAM_BUSY"), completed()).is_clean


def test_a_paid_video_whose_task_failed_is_lost() -> None:
    verdict = verdict_on(ended(("LostContactError", "5 queries in a row failed")), completed())
    assert counts(verdict) == {"videos asked for": 1, Outcome.LOST.value: 1}
    assert not verdict.is_clean


def test_a_paid_video_whose_task_failed_without_a_word_is_lost() -> None:
    assert verdict_on(ended(), completed()).lost == 1


@pytest.mark.parametrize("bills", [0, 1])
def test_an_unknown_outcome_that_was_reported_is_not_lost(bills: int) -> None:
    errors = (("AirflowFailException", "…"), ("UnknownSubmissionError", "…"))
    verdict = verdict_on(ended(*errors), completed(times_billed=bills))
    assert counts(verdict) == {"videos asked for": 1, Outcome.UNKNOWN.value: 1}


@pytest.mark.parametrize(
    "returned", [None, {}, {"state": "completed"}, {"task_id": "clZ", "state": "completed"}]
)
def test_a_success_without_the_paid_video_is_lost(returned: dict[str, Any] | None) -> None:
    verdict = verdict_on(AirflowSide(MARK, "success", returned=returned), completed())
    assert verdict.lost == 1


def test_a_success_with_a_video_that_is_not_completed_is_lost() -> None:
    assert verdict_on(succeeded(state="processing"), completed()).lost == 1


def test_a_success_that_nobody_paid_is_no_delivery() -> None:
    assert verdict_on(succeeded(), completed(times_billed=0)).lost == 1
    assert judge([succeeded()], {}).lost == 1


@pytest.mark.parametrize("state", [None, "queued", "running", "deferred", "up_for_retry", "scheduled"])
def test_a_task_that_is_not_over_is_stuck(state: str | None) -> None:
    verdict = verdict_on(AirflowSide(MARK, state), completed())
    assert counts(verdict) == {"videos asked for": 1, Outcome.STUCK.value: 1}
    assert not verdict.is_clean


def test_a_refusal_counts_where_the_error_names_the_reason_that_the_emulator_gave() -> None:
    error = ("ModerationError", "The service reports task clF as failed (code CONTENT_MODERATION).")
    assert verdict_on(ended(error), failed("CONTENT_MODERATION")).counts == {Outcome.REFUSED: 1}
    assert verdict_on(ended(error), failed("INVALID_INPUT")).counts == {Outcome.UNPAID: 1}
    refused = ("BadRequestError", "The service refused the request (code 400).")
    assert verdict_on(ended(refused), refusals=(400,)).counts == {Outcome.REFUSED: 1}
    assert verdict_on(ended(refused)).counts == {Outcome.UNPAID: 1}


def test_a_bill_that_no_task_in_airflow_stands_for_is_lost() -> None:
    verdict = judge(
        [succeeded()], {MARK: ServiceSide((completed(),)), "other": ServiceSide((completed("clX"),))}
    )
    assert counts(verdict) == {"videos asked for": 2, "delivered": 1, Outcome.LOST.value: 1}


def test_an_unknown_outcome_after_a_clear_answer_was_a_kill_within_the_submit() -> None:
    told = ended(("UnknownSubmissionError", "…"))
    assert judge([told], {MARK: ServiceSide((completed(),))}).killed_in_submit == 1
    assert judge([told], {}).killed_in_submit == 1
    assert judge([told], {MARK: ServiceSide((completed(),), unclear_answers=1)}).killed_in_submit == 0


def test_a_task_that_its_operator_did_not_give_up_was_failed_by_airflow() -> None:
    assert ended(("AirflowRuntimeError", "timed out")).was_failed_by_airflow
    assert ended().was_failed_by_airflow
    assert not ended(("AirflowFailException", "…"), ("ModerationError", "…")).was_failed_by_airflow
    assert not succeeded().was_failed_by_airflow
    assert not AirflowSide(MARK, "queued").was_failed_by_airflow


def test_a_run_that_delivered_nothing_is_not_clean() -> None:
    assert not judge([], {}).is_clean
    assert not verdict_on(ended(("BadRequestError", "x (code 400)")), refusals=(400,)).is_clean


def test_every_video_is_in_exactly_one_row_besides_paid_twice() -> None:
    sides = [
        AirflowSide("a", "success", returned={"task_id": "clA", "state": "completed"}),
        AirflowSide("b", "failed", errors=(("UnknownSubmissionError", "…"),)),
        AirflowSide("c", "queued"),
        AirflowSide("d", "failed"),
    ]
    verdict = judge(sides, {"a": ServiceSide((completed(),)), "d": ServiceSide((completed("clD"),))})
    rows = dict(verdict.rows())
    assert rows.pop("videos asked for") == 4 == sum(rows.values())


def test_the_mark_of_a_task_is_found_in_the_prompt_that_bears_it() -> None:
    mark = mark_of("chaos", "manual__2026-01-01T00:00:00+00:00", "mapped", 2)
    assert mark_in(f"A clip for [{mark}]") == mark
    assert key_of(mark) == ("chaos", "manual__2026-01-01T00:00:00+00:00", "mapped", 2)


def test_the_last_error_of_an_attempt_is_read_from_its_log_with_its_causes(tmp_path: Path) -> None:
    log = log_file(tmp_path, "dag", "run", "task", 1, 4)
    assert str(log.relative_to(tmp_path)) == "dag_id=dag/run_id=run/task_id=task/map_index=1/attempt=4.log"
    log.parent.mkdir(parents=True)
    chain = [
        {"exc_type": "AirflowFailException", "exc_value": "told", "frames": []},
        {"exc_type": "UnknownSubmissionError", "exc_value": "told", "frames": []},
    ]
    lines = [
        json.dumps(
            {"event": "an earlier one", "error_detail": [{"exc_type": "ValueError", "exc_value": "x"}]}
        ),
        json.dumps({"event": "Task failed with exception", "error_detail": chain}),
        '{"event": "cut off when the proc',
    ]
    log.write_text("\n".join(lines))
    assert last_errors(log) == (("AirflowFailException", "told"), ("UnknownSubmissionError", "told"))
    assert last_errors(tmp_path / "missing.log") == ()
