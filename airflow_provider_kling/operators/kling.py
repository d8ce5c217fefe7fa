"""The operator that asks the service for a video and waits for it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator, conf

from airflow_provider_kling.api.errors import InvalidRequestError, KlingError
from airflow_provider_kling.api.request import DEFAULT_MODEL, VideoRequest, find_faults
from airflow_provider_kling.config import max_failed_queries
from airflow_provider_kling.exceptions import to_airflow
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.hooks.settings import DEFAULT_CONN_ID
from airflow_provider_kling.links.kling import KlingVideoLink
from airflow_provider_kling.result import describe_request, video_result
from airflow_provider_kling.triggers.kling import KlingVideoTrigger
from airflow_provider_kling.waiting import (
    DEFAULT_POLL_INTERVAL,
    DEFAULT_TIMEOUT,
    AskAgain,
    Over,
    WaitEvent,
    Waiting,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_kling.api.task import VideoTask

XCOM_TASK_ID = "task_id"
"""XCom key of the service's task id, pushed right after the submit."""

_REQUEST_FIELDS = tuple(VideoRequest.model_fields)


class KlingGenerateVideoOperator(BaseOperator):
    """
    Ask Kling Omni-Video for a video, wait until it is made, and return where it is.

    The fields of the request bear the service's names; see :class:`~airflow_provider_kling.api.request.VideoRequest`
    for what each takes. All of them may be templates or XCom arguments. Literal values are checked when the Dag is
    parsed, all values before anything is sent.

    The service's task id goes to XCom ``task_id`` right after the submit. The service has no cancel: a task that is
    killed or times out leaves a video that may still be completed and billed.

    :param prompt: what the video shows.
    :param model: ``kling-v3-omni`` or ``kling-video-o1``.
    :param extra_body: fields of the service that this package does not know, sent as given.
    :param kling_conn_id: id of a connection of type ``kling``.
    :param deferrable: wait in the triggerer, without holding a worker. Default: ``[operators] default_deferrable``.
    :param wait_for_completion: False to end right after the submit; see
        :class:`~airflow_provider_kling.sensors.kling.KlingVideoSensor` for waiting elsewhere.
    :param poll_interval: seconds between two queries.
    :param timeout: how long to wait from the submit on, seconds or a timedelta. One video in ten takes more than
        8 minutes.
    :return: XCom with ``task_id``, ``model``, ``state``, ``video_url``, ``result_urls``, ``duration_seconds``,
        ``created_at``, ``completed_at``, ``generation_seconds``, ``estimated_cost_usd``, ``request``.
    :raises InvalidRequestError: at parse time, for literal values that the service would refuse.
    """

    template_fields: Sequence[str] = (*_REQUEST_FIELDS, "kling_conn_id")
    template_fields_renderers = {  # noqa: RUF012 - Airflow declares it as an instance's attribute
        "image_list": "json",
        "element_list": "json",
        "video_list": "json",
        "multi_prompt": "json",
        "extra_body": "json",
    }
    operator_extra_links = (KlingVideoLink(),)
    ui_color = "#e8def8"

    def __init__(
        self,
        *,
        prompt: str | None = None,
        model: str = DEFAULT_MODEL,
        mode: str | None = None,
        duration: str | int | None = None,
        aspect_ratio: str | None = None,
        sound: str | bool | None = None,
        image_list: str | Sequence[str | Mapping[str, Any]] | None = None,
        element_list: str | Sequence[int | Mapping[str, Any]] | None = None,
        video_list: str | Sequence[str | Mapping[str, Any]] | None = None,
        multi_shot: str | bool | None = None,
        shot_type: str | None = None,
        multi_prompt: str | Sequence[Mapping[str, Any]] | None = None,
        watermark_info: str | bool | Mapping[str, Any] | None = None,
        callback_url: str | None = None,
        extra_body: str | Mapping[str, Any] | None = None,
        kling_conn_id: str = DEFAULT_CONN_ID,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        wait_for_completion: bool = True,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.prompt = prompt
        self.model = model
        self.mode = mode
        self.duration = duration
        self.aspect_ratio = aspect_ratio
        self.sound = sound
        self.image_list = image_list
        self.element_list = element_list
        self.video_list = video_list
        self.multi_shot = multi_shot
        self.shot_type = shot_type
        self.multi_prompt = multi_prompt
        self.watermark_info = watermark_info
        self.callback_url = callback_url
        self.extra_body = extra_body
        self.kling_conn_id = kling_conn_id
        self.deferrable = deferrable
        self.wait_for_completion = wait_for_completion
        self.poll_interval = seconds_above_zero("poll_interval", poll_interval)
        self.timeout = seconds_above_zero("timeout", timeout)
        self._kling_task_id: str | None = None
        self._check_literals()

    def execute(self, context: Context) -> dict[str, Any]:
        """
        Submit the request, and wait for the video unless told not to.

        :raises AirflowFailException: where another attempt cannot help.
        :raises KlingError: where it can.
        """
        hook = KlingHook(self.kling_conn_id)
        try:
            request = self._request()
            for warning in request.warnings():
                self.log.warning("%s", warning)
            self.log.info("Asking Kling for a video: %s", describe_request(request))
            task = hook.submit(request)
            self._remember(context, task, hook)
            if not self.wait_for_completion:
                self.log.info("Not waiting for it: wait_for_completion is off.")
                return video_result(task, request)
            now = time.time()
            waiting = Waiting(
                task.task_id,
                deadline=now + self.timeout,
                poll_interval=self.poll_interval,
                started=now,
                max_failures=max_failed_queries(),
            )
            decision = waiting.on_task(task, now) if task.state.is_terminal else hook.ask_once(waiting)
            return self._follow(context, hook, waiting, decision)
        except KlingError as error:
            raise to_airflow(error) from error.__cause__
        finally:
            hook.close()

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """
        Go on when the trigger has fired: ask the service, deliver what it says, or wait on.

        :param event: what the trigger told. It is a hint; the service is asked again.
        :raises AirflowFailException: where another attempt cannot help.
        :raises KlingError: where it can.
        """
        try:
            told = WaitEvent.from_dict(event)
        except ValueError as error:
            raise AirflowFailException(
                f"The task was resumed by something that is {error}. The video may be completed and billed: its "
                f"Kling task id is in this task's XCom {XCOM_TASK_ID!r}; fetch it with KlingVideoSensor."
            ) from error
        self._kling_task_id = told.kling_task_id
        waiting = Waiting.resumed(told, poll_interval=self.poll_interval, max_failures=max_failed_queries())
        hook = KlingHook(self.kling_conn_id)
        try:
            return self._follow(context, hook, waiting, hook.ask_once(waiting))
        except KlingError as error:
            raise to_airflow(error) from error.__cause__
        finally:
            hook.close()

    def on_kill(self) -> None:
        """Say what becomes of the video: the service has no cancel."""
        if self._kling_task_id is not None:
            self.log.warning(
                "The Airflow task was killed, but the service has no cancel: Kling task %s goes on and will be "
                "billed when it is completed.",
                self._kling_task_id,
            )

    def _follow(
        self, context: Context, hook: KlingHook, waiting: Waiting, decision: AskAgain | Over
    ) -> dict[str, Any]:
        if isinstance(decision, AskAgain):
            if self.deferrable:
                self.log.info("Deferring: the triggerer waits for Kling task %s.", waiting.task_id)
                self.defer(
                    trigger=KlingVideoTrigger.of(waiting, kling_conn_id=self.kling_conn_id),
                    method_name="execute_complete",
                    timeout=waiting.net(time.time()),
                )
            time.sleep(max(0.0, decision.at - time.time()))
            decision = hook.wait_until_over(waiting)
        if decision.error is not None:
            raise decision.error
        assert decision.task is not None  # noqa: S101 - every outcome without an error has a task
        return self._deliver(context, hook, decision.task)

    def _deliver(self, context: Context, hook: KlingHook, task: VideoTask) -> dict[str, Any]:
        KlingVideoLink.push(context, task, base_url=hook.settings.base_url)
        seconds = "" if task.generation_seconds is None else f" after {task.generation_seconds:.0f} s"
        shown = (task.video_url or "").partition("?")[0]
        self.log.info("Kling task %s is completed%s: %s", task.task_id, seconds, shown)
        return video_result(task, self._request())

    def _remember(self, context: Context, task: VideoTask, hook: KlingHook) -> None:
        self._kling_task_id = task.task_id
        # The log first: should XCom be out of reach, the id is still there to be read.
        self.log.info("Kling task id: %s", task.task_id)
        context["ti"].xcom_push(key=XCOM_TASK_ID, value=task.task_id)
        KlingVideoLink.push(context, task, base_url=hook.settings.base_url)

    def _request(self) -> VideoRequest:
        return VideoRequest(**{name: getattr(self, name) for name in _REQUEST_FIELDS})

    def _check_literals(self) -> None:
        fields = {name: getattr(self, name) for name in _REQUEST_FIELDS}
        late = frozenset(name for name, value in fields.items() if comes_later(value))
        if faults := find_faults(fields, unknown=late):
            raise InvalidRequestError(faults)


def comes_later(value: Any) -> bool:
    """Whether a value is known only when the task runs: a template, an XCom argument, or something that holds one."""
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    if isinstance(value, Mapping):
        return any(comes_later(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(comes_later(item) for item in value)
    return hasattr(value, "iter_references")


def seconds_above_zero(name: str, value: float | timedelta) -> float:
    """
    Read an interval or a limit.

    :raises ValueError: where it is not a number of seconds or a timedelta above zero.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise ValueError(f"{name} must be a number of seconds above 0, or a timedelta; got {value!r}")
    return float(seconds)
