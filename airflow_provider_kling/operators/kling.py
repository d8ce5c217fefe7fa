"""The operator that asks the service for a video and waits for it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator, conf

from airflow_provider_kling import config
from airflow_provider_kling.api.errors import InvalidRequestError
from airflow_provider_kling.api.request import DEFAULT_MODEL, VideoRequest, find_faults
from airflow_provider_kling.exceptions import raising_to_airflow
from airflow_provider_kling.generation import XCOM_TASK_ID, Generation
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.hooks.settings import DEFAULT_CONN_ID
from airflow_provider_kling.ledger import open_ledger
from airflow_provider_kling.links.kling import KlingVideoLink
from airflow_provider_kling.submission import OnExpiredResult, OnUnknownSubmission
from airflow_provider_kling.waiting import DEFAULT_POLL_INTERVAL, DEFAULT_TIMEOUT, PauseEvent, WaitEvent

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

_Choice = TypeVar("_Choice", bound=StrEnum)
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
    :param ledger_path: directory on local disk or object storage, shared by all workers, where the submission is
        remembered, so that no retry buys the video twice. Default: ``[kling] ledger_path``, else Airflow's task state
        store (3.3 and later).
    :param on_unknown_submission: what to do where an earlier attempt sent the request and never learnt what became of
        it: ``fail`` without retries, or ``resubmit``, which buys a second video if there is a first.
    :param on_expired_result: what to do where an earlier attempt's video was paid for and is deleted by now: ``fail``,
        or ``resubmit``, which buys it again.
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
        ledger_path: str | None = None,
        on_unknown_submission: str = OnUnknownSubmission.FAIL,
        on_expired_result: str = OnExpiredResult.FAIL,
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
        self.ledger_path = ledger_path
        self.on_unknown_submission = one_of(
            "on_unknown_submission", on_unknown_submission, OnUnknownSubmission
        )
        self.on_expired_result = one_of("on_expired_result", on_expired_result, OnExpiredResult)
        self.kling_task_id: str | None = None
        self.is_killed = False
        self._check_literals()

    def execute(self, context: Context) -> dict[str, Any]:
        """
        Ask for the video, or take up what an earlier attempt asked for, and wait for it unless told not to.

        :raises AirflowFailException: where another attempt cannot help.
        :raises KlingError: where it can.
        """
        now = time.time()
        ends_at = now + self.execution_timeout.total_seconds() if self.execution_timeout else math.inf
        with self._generation(context) as generation:
            generation.announce()
            return generation.start(PauseEvent(deadline=now + self.timeout, attempt_ends_at=ends_at))

    def execute_again(self, context: Context, event: Any = None) -> dict[str, Any]:
        """
        Ask once more, after the service had too much to do.

        :param event: until when to go on with it.
        :raises AirflowFailException: where another attempt cannot help.
        :raises KlingError: where it can.
        """
        try:
            limits = PauseEvent.from_dict(event)
        except ValueError:
            # Nothing is bought yet, so nothing is lost by beginning anew.
            return self.execute(context)
        with self._generation(context) as generation:
            return generation.start(limits)

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
        self.kling_task_id = told.kling_task_id
        with self._generation(context) as generation:
            return generation.resume(told)

    def on_kill(self) -> None:
        """Stop a submit that is about to happen, and say what becomes of the video: the service has no cancel."""
        self.is_killed = True
        if self.kling_task_id is not None:
            self.log.warning(
                "The Airflow task was killed, but the service has no cancel: Kling task %s goes on and will be "
                "billed when it is completed.",
                self.kling_task_id,
            )

    @contextmanager
    def _generation(self, context: Context) -> Iterator[Generation]:
        with closing(KlingHook(self.kling_conn_id)) as hook, raising_to_airflow():
            ledger = open_ledger(context, self.ledger_path or config.ledger_path())
            yield Generation(self, context, hook, ledger, self._request())

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
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise ValueError(f"{name} must be a number of seconds above 0, or a timedelta; got {value!r}")
    return float(seconds)


def one_of(name: str, value: str, choices: type[_Choice]) -> _Choice:
    """
    Read a choice.

    :raises ValueError: where it is none of those that there are.
    """
    try:
        return choices(value)
    except ValueError:
        allowed = " or ".join(repr(choice.value) for choice in choices)
        raise ValueError(f"{name} must be {allowed}; got {value!r}") from None
