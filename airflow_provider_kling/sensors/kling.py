"""The sensor that waits for a video that something else asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_kling.airflow_versions import AIRFLOW_V_3_3_PLUS
from airflow_provider_kling.api.errors import KlingError, TaskTimeoutError
from airflow_provider_kling.arguments import task_id_in
from airflow_provider_kling.card import error_card, leave_card, result_card
from airflow_provider_kling.config import max_failed_queries
from airflow_provider_kling.deferral import follow, of_a_task_made_elsewhere
from airflow_provider_kling.exceptions import going_on, raising_to_airflow
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.hooks.settings import DEFAULT_CONN_ID
from airflow_provider_kling.links.kling import KlingVideoLink
from airflow_provider_kling.result import video_result
from airflow_provider_kling.sensors.ending import skipping_where_told
from airflow_provider_kling.waiting import (
    DEFAULT_POLL_INTERVAL,
    DEFER_NET,
    AskAgain,
    Over,
    WaitEvent,
    Waiting,
    end_of_attempt,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


_NOT_WHERE_MAPPED = (
    "start_from_trigger=True does not work for a mapped task or in a mapped task group: Airflow starts all of them "
    "with the same arguments. Leave it out: with deferrable=True a worker is needed for some seconds only."
)


class KlingVideoSensor(BaseSensorOperator):
    """
    Wait until a video is made that something else asked for.

    ``mode``, ``soft_fail``, ``timeout`` and the other arguments of Airflow's sensors mean what they mean there.
    In mode ``reschedule`` each query runs in a process of its own, so failed queries, and failed look-ups of the
    connection, are borne until ``timeout``.

    :param kling_task_id: the service's task id.
    :param kling_conn_id: id of a connection of type ``kling``, of the account that made the task.
    :param deferrable: wait in the triggerer, without holding a worker. Default: ``[operators] default_deferrable``.
    :param poke_interval: seconds between two queries.
    :param start_from_trigger: start in the triggerer, so that no worker is needed before the video is made; with
        ``deferrable``, from Airflow 3.3 on, and not where the task is mapped. ``kling_task_id`` is then text, a
        template or another task's output.
    :return: XCom as :class:`~airflow_provider_kling.operators.kling.KlingGenerateVideoOperator` returns it, without
        what only the submitter knows (``estimated_cost_usd``, ``request``).
    """

    template_fields: Sequence[str] = ("kling_task_id", "kling_conn_id")
    operator_extra_links = (KlingVideoLink(),)
    ui_color = "#e8def8"

    def __init__(
        self,
        *,
        kling_task_id: str,
        kling_conn_id: str = DEFAULT_CONN_ID,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: float | timedelta = DEFAULT_POLL_INTERVAL,
        start_from_trigger: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.kling_task_id = kling_task_id
        self.kling_conn_id = kling_conn_id
        self.deferrable = deferrable
        self._poking: Waiting | None = None
        if start_from_trigger:
            self._start_from_trigger()

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """
        Give the arguments that all mapped tasks share.

        :raises ValueError: where one of them is ``start_from_trigger``.
        """
        if kwargs.get("start_from_trigger"):
            raise ValueError(_NOT_WHERE_MAPPED)
        return super().partial(**kwargs)

    def _start_from_trigger(self) -> None:
        from airflow.triggers.base import StartTriggerArgs

        if not AIRFLOW_V_3_3_PLUS:
            raise ValueError(
                "start_from_trigger=True needs Airflow 3.3 or later, which renders kling_task_id in the triggerer. "
                "Leave it out: with deferrable=True a worker is needed for some seconds only."
            )
        if not self.deferrable:
            raise ValueError("start_from_trigger=True needs deferrable=True: it is the triggerer that waits")
        if self.get_closest_mapped_task_group() is not None:
            raise ValueError(_NOT_WHERE_MAPPED)
        ended_by_airflow = timedelta(seconds=self.timeout) + DEFER_NET
        if self.execution_timeout is not None:
            ended_by_airflow = min(ended_by_airflow, self.execution_timeout)
        self.start_from_trigger = True
        # Airflow renders what has one name as an argument here, as a template field, and as the trigger's attribute.
        self.start_trigger_args = StartTriggerArgs(
            trigger_cls="airflow_provider_kling.triggers.kling.KlingVideoTrigger",
            trigger_kwargs={
                "kling_conn_id": self.kling_conn_id,
                "kling_task_id": _as_template(self.kling_task_id),
                "poll_interval": self.poke_interval,
                "timeout": self.timeout,
                "net": ended_by_airflow.total_seconds() - self.timeout,
            },
            next_method="execute_complete",
            timeout=timedelta(seconds=self.timeout) + DEFER_NET,
        )

    def execute(self, context: Context) -> Any:
        """
        Wait on the worker, or ask once and wait in the triggerer.

        :raises AirflowSensorTimeout: where the video is not made in time.
        :raises TaskTimeoutError: where it is not made within ``execution_timeout``; a retry waits on.
        :raises AirflowFailException: where it failed, or the service refuses to be asked.
        :raises KlingError: where another attempt can help.
        """
        if not self.deferrable:
            return super().execute(context)
        with skipping_where_told(self):
            return self._follow(context, self._waiting(limit=self.timeout))

    def poke(self, context: Context) -> PokeReturnValue:
        """Ask once whether the video is made. How long to go on is for Airflow's sensor to decide."""
        self._poking = self._poking or self._waiting(limit=math.inf)
        with self._ending(context), closing(KlingHook(self.kling_conn_id)) as hook:
            decision = hook.ask_once(self._poking)
            if isinstance(decision, AskAgain):
                return PokeReturnValue(is_done=False)
            return PokeReturnValue(is_done=True, xcom_value=self._deliver(context, hook, decision))

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """
        Go on when the trigger has fired: ask the service, deliver what it says, or wait on.

        :param event: what the trigger told. It is a hint; the service is asked again.
        """
        with skipping_where_told(self):
            if self.start_from_trigger:
                task_id_in(self.kling_task_id)  # the triggerer asked for whatever its template gave
            try:
                told = WaitEvent.from_dict(event)
            except ValueError as error:
                raise AirflowFailException(f"The sensor was resumed by something that is {error}") from error
            return self._follow(
                context,
                Waiting.resumed(told, poll_interval=self.poke_interval, max_failures=max_failed_queries()),
            )

    def _follow(self, context: Context, waiting: Waiting) -> dict[str, Any]:
        attempt_ends_at = end_of_attempt(self.execution_timeout, now=waiting.started)
        waiting.deadline = min(waiting.deadline, attempt_ends_at)
        is_last_attempt = waiting.deadline < attempt_ends_at
        with (
            self._ending(context, is_last_attempt=is_last_attempt),
            closing(KlingHook(self.kling_conn_id)) as hook,
        ):
            self._show_link(context, hook, waiting.task_id, None)
            return self._deliver(context, hook, follow(self, hook, waiting, deferrable=True))

    def _deliver(self, context: Context, hook: KlingHook, over: Over) -> dict[str, Any]:
        if over.error is not None:
            raise over.error
        assert over.task is not None  # noqa: S101 - every outcome without an error has a task
        self._show_link(context, hook, over.task.task_id, over.task.video_url)
        self.log.info("Kling task %s is completed.", over.task.task_id)
        result = video_result(over.task)
        leave_card(context, lambda: result_card(result), log=self.log)
        return result

    def _show_link(self, context: Context, hook: KlingHook, task_id: str, video_url: str | None) -> None:
        with going_on(self.log, "The link to the video could not be shown"):
            KlingVideoLink.push(context, task_id, video_url, base_url=hook.settings.base_url, stays=False)

    @contextmanager
    def _ending(self, context: Context, *, is_last_attempt: bool = True) -> Iterator[None]:
        """
        Leave a card of an error that ends the attempt, and raise what Airflow knows.

        :param is_last_attempt: whether the sensor's own ``timeout`` ends the wait, after which Airflow makes no retry.
        """
        with raising_to_airflow():
            try:
                yield
            except KlingError as error:
                kling_task_id = task_id_in(self.kling_task_id)
                of_a_task_made_elsewhere(error, kling_task_id)
                failed = error_card(error, kling_task_id=kling_task_id)
                leave_card(context, lambda: failed, log=self.log)
                if isinstance(error, TaskTimeoutError) and is_last_attempt:
                    raise AirflowSensorTimeout(str(error)) from error
                raise

    def _waiting(self, *, limit: float) -> Waiting:
        now = time.time()
        return Waiting(
            task_id_in(self.kling_task_id),
            deadline=now + limit,
            poll_interval=self.poke_interval,
            started=now,
            max_failures=max_failed_queries(),
        )


def _as_template(value: Any) -> str:
    """Return a template field as text that Airflow can render in a triggerer."""
    from airflow.sdk.definitions.mappedoperator import MappedOperator
    from airflow.sdk.definitions.xcom_arg import PlainXComArg

    if isinstance(value, PlainXComArg) and not isinstance(value.operator, MappedOperator):
        # Not str(value): a triggerer cannot pull for all map indexes, and would hang.
        return (
            f"{{{{ ti.xcom_pull(task_ids={value.operator.task_id!r}, key={value.key!r}, map_indexes=-1) }}}}"
        )
    if not isinstance(value, str):
        raise ValueError(  # noqa: TRY004 - as for every other argument that is wrong
            "start_from_trigger=True needs a kling_task_id that is text, a template or the output of another task that "
            f"is not mapped; got {value!r}"
        )
    if "xcom_pull" in value and "map_indexes" not in value:
        raise ValueError(
            "start_from_trigger=True needs map_indexes in xcom_pull, as Airflow's triggerer cannot do without: give "
            f"the other task's output itself, or add map_indexes=-1; got {value!r}"
        )
    return value
