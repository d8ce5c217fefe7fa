"""What the commands do."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException

from airflow_provider_kling import config
from airflow_provider_kling.api.errors import (
    ConnectionSettingsError,
    KlingError,
    NoResultError,
    TaskFailedError,
    TaskNotFoundError,
)
from airflow_provider_kling.api.media import MediaLibraryMissingError
from airflow_provider_kling.api.pricing import CostRange, Estimate, estimate, highest
from airflow_provider_kling.api.protocol import DEFAULT_BASE_URL
from airflow_provider_kling.api.request import DEFAULT_MODE, VideoRequest
from airflow_provider_kling.api.task import RecordedCost, TaskState, VideoTask
from airflow_provider_kling.budget import check_budget, shown, usd
from airflow_provider_kling.cli.asking import UsageError, requests_in
from airflow_provider_kling.cli.callbacks import check_callbacks
from airflow_provider_kling.cli.terminal import ShownStorage, Terminal, logs_to_stderr
from airflow_provider_kling.costs import recorded_cost
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.hooks.settings import DEFAULT_CONN_ID, ConnectionSettings
from airflow_provider_kling.manifest import manifest_document
from airflow_provider_kling.order import Order
from airflow_provider_kling.output_path import NOWHERE, PLACEHOLDERS, OutputPath
from airflow_provider_kling.result import Asked, video_result
from airflow_provider_kling.storage import ResultStorage
from airflow_provider_kling.waiting import Waiting

if TYPE_CHECKING:
    from airflow_provider_kling.storage import StoredFile

FAILED = 1
MISUSED = 2
INTERRUPTED = 130
_OF_A_DAG = tuple(name for name in PLACEHOLDERS if name not in ("kling_task_id", "index", "ext"))
_PROMPT_IN_TABLE = 50


def run(name: str, given: Namespace, *, program: str) -> int:
    """
    Run a command.

    :param name: which.
    :param given: what was typed.
    :param program: how the command line is called, for the commands that it suggests.
    :return: the exit status: 0, 1 for what went wrong, 2 for what cannot be done as it was typed, 130 after Ctrl-C.
    """
    terminal = Terminal()
    # As Airflow's own commands do: without it, connections that are stored in its database are not found.
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    try:
        with logs_to_stderr():
            return _COMMANDS[name](_Call(given, terminal, program))
    except UsageError as error:
        terminal.note(f"{program} {name}: {error}")
        return MISUSED
    except (KlingError, AirflowException) as error:
        terminal.note(str(error))
        return FAILED
    except KeyboardInterrupt:
        terminal.note("Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever reads the output has enough of it. Python would stumble once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # noqa: BLE001 - a person at a terminal has no use for a traceback
        terminal.note(f"Something unexpected went wrong: {type(error).__name__}: {error}")
        return FAILED


@dataclass(frozen=True)
class _Call:
    """One command as it was typed."""

    given: Namespace
    terminal: Terminal
    program: str

    @property
    def conn_id(self) -> str:
        return self.given.conn_id or DEFAULT_CONN_ID

    def hook(self) -> closing[KlingHook]:
        return closing(KlingHook(self.conn_id))

    def max_cost_usd(self) -> Decimal | None:
        try:
            return None if self.given.max_cost_usd is None else usd("--max-cost-usd", self.given.max_cost_usd)
        except ValueError as error:
            raise UsageError(f"{error}.") from None

    def output(self) -> OutputPath | None:
        template = self.given.output_path
        if template is None:
            if self.given.output_conn_id is not None:
                raise UsageError("--output-conn-id is about storage: give --output-path too.")
            return None
        for name in _OF_A_DAG:
            if f"{{{name}}}" in template:
                raise UsageError(
                    f"--output-path has {{{name}}} in it, and on a command line there is no Dag."
                )
        if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", template):
            ending = "/" if template.endswith("/") else ""
            template = os.path.abspath(Path(template).expanduser()).rstrip("/") + ending  # noqa: PTH100 - it resolves ".." too
        try:
            return OutputPath(template, self.given.output_conn_id)
        except ValueError as error:
            raise UsageError(f"--output-path: {error}") from None

    def how_to_fetch(self, kling_task_id: str) -> str:
        place = self.given.output_path or "DIRECTORY"
        words = ["download", kling_task_id, "--output-path", shlex.quote(place)]
        if self.given.output_conn_id:
            words += ["--output-conn-id", shlex.quote(self.given.output_conn_id)]
        if self.given.conn_id:
            words += ["--conn-id", shlex.quote(self.given.conn_id)]
        return f"{self.program} {' '.join(words)}"


class _HookWithoutConnection(KlingHook):
    """What an estimate needs of a service that it sends nothing to."""

    @cached_property
    def settings(self) -> ConnectionSettings:
        return ConnectionSettings(conn_id=self.kling_conn_id, base_url=DEFAULT_BASE_URL, key="")


def _check(call: _Call) -> int:
    with call.hook() as hook:
        works, text = hook.test_connection()
        if not works:
            call.terminal.note(text)
            return FAILED
        call.terminal.result(text)
        if call.given.callbacks:
            call.terminal.result(check_callbacks(hook.settings))
    return 0


def _estimate(call: _Call) -> int:
    limit = call.max_cost_usd()
    requests, is_list = requests_in(call.given)
    with closing(_hook_for_prices(call)) as hook:
        found = [_estimated(call, hook, request) for request in requests]
    costs = [cost for _, cost in found]
    total = _sum(costs)
    if call.given.json:
        entries = [_estimate_as_json(asked, cost) for asked, cost in found]
        if is_list:
            call.terminal.result_as_json({"requests": entries, **_cost_as_json(total)})
        else:
            call.terminal.result_as_json(entries[0])
    else:
        rows = [
            [str(number), *_row(request, asked), _cost(cost)]
            for number, (request, (asked, cost)) in enumerate(zip(requests, found, strict=True), start=1)
        ]
        if len(rows) > 1:
            rows.append(["", "", "", "", "", "sum", _cost(total)])
        headings = ["", "model", "mode", "seconds", "sound", "prompt", "USD"]
        call.terminal.result_as_table(rows, headings=headings, right=(0, 3, 6))
    check_budget(costs, limit)
    return 0


def _generate(call: _Call) -> int:
    given, terminal = call.given, call.terminal
    output, limit = call.output(), call.max_cost_usd()
    is_asked_for = given.yes or sys.stdin.isatty()
    requests, _ = requests_in(given)
    if len(requests) > 1:
        raise UsageError(f"This makes one video at a time, and {len(requests)} are asked for.")
    if not is_asked_for:
        raise UsageError(
            "There is no terminal to ask on whether to spend money. Give --yes to spend it without being asked."
        )
    (request,) = requests
    for warning in request.warnings():
        terminal.warning("%s", warning)
    with call.hook() as hook:
        order = Order(hook, request, max_cost_usd=limit, check_balance=given.check_balance, log=terminal)
        # Read here, so that a wrong setting is told before anything is paid.
        max_failures = config.max_failed_queries()
        order.check()
        terminal.note(f"Asking Kling for a video: {order.describe()}")
        if not given.yes and not terminal.asks("Spend that?"):
            terminal.note("Nothing was sent and nothing was billed.")
            return FAILED
        task = _submitted(call, hook, order)
        try:
            made = _completed(call, hook, task.task_id, max_failures)
            files, recorded = _brought(call, hook, made, output, order.asked)
        except KeyboardInterrupt:
            terminal.note(
                f"Interrupted. The service has no cancel: the video goes on and will be billed. Kling task id: "
                f"{task.task_id}. Fetch it with:\n  {call.how_to_fetch(task.task_id)}"
            )
            return INTERRUPTED
        except KlingError as error:
            terminal.note(str(error))
            if not isinstance(error, TaskFailedError):
                terminal.note(f"Fetch it with:\n  {call.how_to_fetch(task.task_id)}")
            return FAILED
        except Exception as error:  # noqa: BLE001 - the video is paid for, whatever it is
            terminal.note(
                f"{type(error).__name__}: {error}. The video goes on and will be billed when it is completed. Kling "
                f"task id: {task.task_id}. Fetch it with:\n  {call.how_to_fetch(task.task_id)}"
            )
            return FAILED
    _tell(call, made, order.asked, files, recorded)
    return 0


def _status(call: _Call) -> int:
    with call.hook() as hook:
        task = hook.get_task(call.given.task_id)
        recorded = None
        if task.state is TaskState.COMPLETED:
            recorded = recorded_cost(hook, task.task_id, patience=0, log=_Silence())
    told: dict[str, Any] = {
        **video_result(task, recorded=recorded),
        "fail_code": task.fail_code,
        "fail_message": task.fail_message,
    }
    for name in ("path", "files", "estimated_cost_usd", "request"):
        del told[name]  # the service does not know them
    if not task.has_known_state:
        told["state"] = task.service_state
    if call.given.json:
        call.terminal.result_as_json(told)
        return 0
    told.pop("video_url")
    rows = [
        [name.replace("_", " "), "\n".join(value) if isinstance(value, list) else str(value)]
        for name, value in told.items()
        if value not in (None, [])
    ]
    call.terminal.result_as_table(rows)
    return 0


def _download(call: _Call) -> int:
    output = call.output()
    assert output is not None  # noqa: S101 - the flag is required
    with call.hook() as hook:
        try:
            try:
                task = _completed(call, hook, call.given.task_id, config.max_failed_queries())
            except (TaskNotFoundError, NoResultError) as error:
                stored = _remembered(call, hook, output)
                if stored is None:
                    if isinstance(error, TaskNotFoundError):
                        error.tell_that_nothing_is_known(call.given.task_id)
                    raise
                task = stored
            files, recorded = _brought(call, hook, task, output, None)
        except KeyboardInterrupt:
            call.terminal.note("Interrupted. Nothing is lost: the same command fetches it.")
            return INTERRUPTED
    _tell(call, task, None, files, recorded)
    return 0


def _remembered(call: _Call, hook: KlingHook, output: OutputPath) -> VideoTask | None:
    return ResultStorage(hook, output, NOWHERE, log=call.terminal).remembered(call.given.task_id)


def _hook_for_prices(call: _Call) -> KlingHook:
    hook = KlingHook(call.conn_id)
    try:
        _ = hook.settings
    except ConnectionSettingsError as error:
        # Only where there is none: with one that cannot be used, other prices may be meant.
        if call.given.conn_id is not None or not error.retryable:
            raise
        call.terminal.note(f"{error.what}: the prices are the service's own, and those of [kling] prices.")
        return _HookWithoutConnection(call.conn_id)
    return hook


def _estimated(call: _Call, hook: KlingHook, request: VideoRequest) -> tuple[Asked, Estimate]:
    for warning in request.warnings():
        call.terminal.warning("%s", warning)
    order = Order(hook, request, log=call.terminal)
    try:
        return order.asked, order.cost
    except MediaLibraryMissingError as error:
        call.terminal.note(f"Files are not looked at. {error}")
        cost = estimate(request, prices=hook.settings.prices)
        return Asked.of(request, cost), cost


def _submitted(call: _Call, hook: KlingHook, order: Order) -> VideoTask:
    ready = order.ready()
    try:
        task = hook.submit(ready)
    except KeyboardInterrupt:
        if hook.is_submitting:
            call.terminal.note(
                "Interrupted while the request was being sent: a video may have been created and may be billed. Look "
                "at the account's records at https://apimodels.app."
            )
        raise
    call.terminal.note(f"Kling task id: {task.task_id}")
    return task


def _completed(call: _Call, hook: KlingHook, kling_task_id: str, max_failures: int) -> VideoTask:
    """
    Wait until a task is completed.

    :raises KlingError: where it will not be.
    """
    now = time.time()
    waiting = Waiting(
        kling_task_id,
        deadline=now + call.given.timeout,
        poll_interval=call.given.poll_interval,
        started=now,
        max_failures=max_failures,
    )
    with call.terminal.waiting(f"Waiting for Kling task {kling_task_id}"):
        over = hook.wait_until_over(waiting, log=call.terminal)
    if over.error is not None:
        if not isinstance(over.error, TaskFailedError):
            over.error.tell_that_the_video_goes_on(kling_task_id)
        raise over.error
    assert over.task is not None  # noqa: S101 - every outcome without an error has a task
    return over.task


def _brought(
    call: _Call, hook: KlingHook, task: VideoTask, output: OutputPath | None, asked: Asked | None
) -> tuple[list[StoredFile], RecordedCost | None]:
    if output is None:
        return [], recorded_cost(hook, task.task_id, log=_Silence())
    with call.terminal.downloading() as arriving:
        storage = ShownStorage(hook, output, NOWHERE, log=call.terminal, arriving=arriving)
        found = storage.find(task.task_id) if asked is None else None
        try:
            files = found or storage.store(task)
        except KeyboardInterrupt:
            storage.stop()
            raise
    recorded = recorded_cost(hook, task.task_id, log=_Silence())
    if found is None:
        # A manifest that is there already may know more than is known here.
        storage.write_manifests(files, manifest_document(task, asked, None, recorded))
    else:
        for file in found:
            call.terminal.info("%s is there already, and whole.", file.path)
    return files, recorded


def _tell(
    call: _Call,
    task: VideoTask,
    asked: Asked | None,
    files: list[StoredFile],
    recorded: RecordedCost | None,
) -> None:
    result = video_result(task, asked, files=files, recorded=recorded)
    if result["recorded_cost_usd"] is not None and recorded is not None:
        call.terminal.note(f"It cost {shown(recorded.amount)} by the service's records.")
    if call.given.json:
        call.terminal.result_as_json(result)
        return
    for place in [file.path for file in files] or task.result_urls:
        call.terminal.result(place)


def _row(request: VideoRequest, asked: Asked) -> list[str]:
    body = asked.request
    seconds = "" if asked.duration_seconds is None else f"{asked.duration_seconds:g}"
    words = " ".join(str(request.prompt or (request.multi_prompt or ())[0].prompt).split())
    if len(words) > _PROMPT_IN_TABLE:
        words = words[: _PROMPT_IN_TABLE - 1] + "…"
    return [
        str(body.get("model")),
        str(body.get("mode", DEFAULT_MODE)),
        seconds,
        request.sound or "off",
        words,
    ]


def _cost(cost: Estimate) -> str:
    if cost is None:
        return "not known"
    if isinstance(cost, CostRange):
        return f"{cost.low:.4f} to {cost.high:.4f}"
    return f"{cost:.4f}"


def _sum(costs: list[Estimate]) -> Estimate:
    if any(cost is None for cost in costs):
        return None
    most = sum((cost for cost in map(highest, costs) if cost is not None), Decimal(0))
    least = sum(
        (cost.low if isinstance(cost, CostRange) else cost for cost in costs if cost is not None), Decimal(0)
    )
    return most if least == most else CostRange(least, most)


def _estimate_as_json(asked: Asked, cost: Estimate) -> dict[str, Any]:
    return {
        "request": dict(asked.request),
        "duration_seconds": asked.duration_seconds,
        **_cost_as_json(cost),
    }


def _cost_as_json(cost: Estimate) -> dict[str, Any]:
    most = highest(cost)
    least = cost.low if isinstance(cost, CostRange) else cost
    return {
        "estimated_cost_usd": None if most is None else float(most),
        "least_cost_usd": None if least is None else float(least),
    }


class _Silence:
    """Takes what is not worth a line."""

    def log(self, level: int, text: str, *arguments: object) -> None:
        """Drop it."""


_COMMANDS: Mapping[str, Callable[[_Call], int]] = {
    "check": _check,
    "estimate": _estimate,
    "generate": _generate,
    "status": _status,
    "download": _download,
}
