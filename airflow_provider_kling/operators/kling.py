"""The operators that ask the service for a video, and that fetch one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    BaseOperator,
    conf,
)

from airflow_provider_kling import config, metrics
from airflow_provider_kling.api.errors import (
    DownloadError,
    InvalidRequestError,
    KlingError,
)
from airflow_provider_kling.api.request import DEFAULT_MODEL, VideoRequest, find_faults
from airflow_provider_kling.arguments import (
    check_callback,
    comes_later,
    is_made_from_mapped,
    one_of,
    output_or_fault,
    seconds_above_zero,
    task_id_in,
    text_of,
)
from airflow_provider_kling.assets import after_rehearsal, not_told_later
from airflow_provider_kling.budget import usd
from airflow_provider_kling.card import error_card, leave_card, result_card
from airflow_provider_kling.deferral import follow, of_a_task_made_elsewhere
from airflow_provider_kling.delivery import Delivery
from airflow_provider_kling.exceptions import going_on, raising_to_airflow
from airflow_provider_kling.generation import XCOM_TASK_ID, Generation
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.hooks.settings import DEFAULT_CONN_ID
from airflow_provider_kling.ledger import open_ledger
from airflow_provider_kling.lineage import lineage
from airflow_provider_kling.links.kling import KlingVideoLink
from airflow_provider_kling.order import Order
from airflow_provider_kling.output_path import check_ledger_path, check_output_path
from airflow_provider_kling.settlement import keep_from_buying_again
from airflow_provider_kling.submission import (
    OnExpiredResult,
    OnUnknownSubmission,
    telling_of_earlier_attempts,
)
from airflow_provider_kling.waiting import (
    DEFAULT_POLL_INTERVAL,
    DEFAULT_TIMEOUT,
    PauseEvent,
    WaitEvent,
    Waiting,
    end_of_attempt,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_kling.ledger import Ledger
    from airflow_provider_kling.result import Asked
    from airflow_provider_kling.storage import StoredFile

_REQUEST_FIELDS = tuple(VideoRequest.model_fields)


class KlingGenerateVideoOperator(BaseOperator):
    """
    Ask Kling Omni-Video for a video, wait until it is made, and return where it is.

    The fields of the request bear the service's names; see :class:`~airflow_provider_kling.api.request.VideoRequest`
    for what each takes. All of them may be templates or XCom arguments. Literal values are checked when the Dag is
    parsed, all values before anything is sent.

    References in ``image_list`` and ``video_list`` may also be files, local or on object storage: they are held to the
    service's limits and uploaded. That needs the extra ``airflow-provider-kling[media]``.

    The service's task id goes to XCom ``task_id`` right after the submit. The service has no cancel: a task that is
    killed or times out leaves a video that may still be completed and billed.

    :param prompt: what the video shows.
    :param model: ``kling-v3-omni`` or ``kling-video-o1``.
    :param extra_body: fields of the service that this package does not know, sent as given.
    :param kling_conn_id: id of a connection of type ``kling``.
    :param output_path: where the video is stored, as a path or URI that Airflow's ``ObjectStoragePath`` takes: a
        directory, or a file's name with ``{dag_id}``, ``{run_id}``, ``{task_id}``, ``{map_index}``,
        ``{kling_task_id}``, ``{index}`` and ``{ext}``. Left out, the video stays with the service, which deletes it
        after 7 days.
    :param output_conn_id: id of the connection to that storage, where the URI does not name one.
    :param max_cost_usd: the most that the video may cost by the estimate, USD; what costs more is not asked for.
    :param check_balance: whether to ask the service for the account's money before the submit.
    :param dry_run: True to stop after the request is checked and its cost estimated.
    :param deferrable: wait in the triggerer, without holding a worker. Default: ``[operators] default_deferrable``.
    :param wait_for_completion: False to end right after the submit; see
        :class:`~airflow_provider_kling.sensors.kling.KlingVideoSensor` for waiting elsewhere.
    :param callback: True to have the service tell Airflow when the video is done: needs Airflow 3.1 or later,
        ``[kling] callback_base_url``, and ``deferrable`` or no ``wait_for_completion``. A query every
        ``[kling] callback_poll_interval`` seconds takes the place of ``poll_interval``. A task that does not wait
        tells its outlets when the callback comes, not when it ends. Not together with ``callback_url``, which goes to
        the service untouched and changes nothing here.
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
    :return: XCom with ``task_id``, ``model``, ``state``, ``video_url``, ``result_urls``, ``path`` (of the first stored
        file), ``files``, ``duration_seconds``, ``created_at``, ``completed_at``, ``generation_seconds``,
        ``estimated_cost_usd``, ``recorded_cost_usd``, ``request``.
    :raises InvalidRequestError: at parse time, for literal values that the service would refuse.
    :raises ValueError: at parse time, for other arguments that cannot be.
    """

    template_fields: Sequence[str] = (*_REQUEST_FIELDS, "kling_conn_id", "output_path", "output_conn_id")
    template_fields_renderers = {  # noqa: RUF012 - Airflow declares it as an instance's attribute
        "image_list": "json",
        "element_list": "json",
        "video_list": "json",
        "multi_prompt": "json",
        "extra_body": "json",
    }
    operator_extra_links = (KlingVideoLink(),)
    ui_color = "#e8def8"
    goes_on_from_xcom = False
    """Whether an attempt that goes on in another process reads its request from XCom, which then holds all of it."""

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
        output_path: str | PurePath | ObjectStoragePath | None = None,
        output_conn_id: str | None = None,
        max_cost_usd: float | str | Decimal | None = None,
        check_balance: bool = False,
        dry_run: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        wait_for_completion: bool = True,
        callback: bool = False,
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
        self.output_path = text_of(output_path)
        self._stores = output_path is not None
        self.output_conn_id = output_conn_id
        self.max_cost_usd = None if max_cost_usd is None else usd("max_cost_usd", max_cost_usd)
        self.check_balance = check_balance
        self.is_dry_run = dry_run
        self.deferrable = deferrable
        self.wait_for_completion = wait_for_completion
        self.callback = callback
        self.poll_interval = seconds_above_zero("poll_interval", poll_interval)
        self.timeout = seconds_above_zero("timeout", timeout)
        self.ledger_path = ledger_path
        self.on_unknown_submission = one_of(
            "on_unknown_submission", on_unknown_submission, OnUnknownSubmission
        )
        self.on_expired_result = one_of("on_expired_result", on_expired_result, OnExpiredResult)
        self.kling_task_id: str | None = None
        self.is_killed = False
        self._lineage: tuple[Asked | None, Sequence[StoredFile]] = (None, ())
        if callback:
            check_callback(
                callback_url=callback_url,
                waits_on_worker=wait_for_completion and not deferrable,
                instead=", or wait_for_completion=False",
            )
        # A mapped task is made when it runs, where an error of this place would be retried: it is checked then.
        if not is_made_from_mapped(self):
            self._check_literals()

    def execute(self, context: Context) -> dict[str, Any]:
        """
        Ask for the video, or take up what an earlier attempt asked for, and wait for it unless told not to.

        :raises AirflowFailException: where another attempt cannot help.
        :raises KlingError: where it can.
        """
        try:
            self._check_wait()  # nobody has seen the arguments of a mapped task before
        except ValueError as error:
            raise AirflowFailException(f"{error} This attempt has sent nothing.") from error
        with self._generation(context, self._request) as generation:
            generation.announce()
            if self.is_dry_run:
                return after_rehearsal(context, self.outlets, generation.rehearse())
            return generation.start(self._limits())

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
        return self.start_again(context, limits)

    def start_again(self, context: Context, limits: PauseEvent) -> dict[str, Any]:
        """
        Ask for the video in a process that did not begin with it.

        :param limits: until when.
        :raises KlingError: where there will be no video from this attempt.
        """
        with self._generation(context, self._request_again) as generation:
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
        with self._generation(context, None, told) as generation:
            result = generation.resume(told)
        return self.start_again(context, result) if isinstance(result, PauseEvent) else result

    def on_kill(self) -> None:
        """Stop a submit that is about to happen, and say what becomes of the video: the service has no cancel."""
        self.is_killed = True
        if self.kling_task_id is not None:
            self.log.warning(
                "The Airflow task was killed, but the service has no cancel: Kling task %s goes on and will be "
                "billed when it is completed.",
                self.kling_task_id,
            )

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Tell OpenLineage of the references and of the stored files."""
        return lineage(*self._lineage)

    @contextmanager
    def _generation(
        self,
        context: Context,
        make_request: Callable[[Context], VideoRequest] | None,
        told: WaitEvent | None = None,
    ) -> Iterator[Generation]:
        generation: Generation | None = None
        ledger = self._open_ledger(context)
        with closing(KlingHook(self.kling_conn_id)) as hook, raising_to_airflow():
            try:
                output = output_or_fault(self.output_path, self.output_conn_id) if self._stores else None
                delivery = Delivery(hook, context, output=output, outlets=self.outlets, log=self.log)
                order = None
                if make_request is not None:
                    with telling_of_earlier_attempts(ledger):
                        request = make_request(context)
                    order = Order(
                        hook,
                        request,
                        max_cost_usd=self.max_cost_usd,
                        check_balance=self.check_balance,
                        check_place=delivery.check,
                        log=self.log,
                    )
                generation = Generation(self, context, hook, ledger, delivery, order)
                yield generation
            except KlingError as error:
                metrics.failed(error, generation.asked if generation else None)
                self._show_failure(context, generation, error)
                raise
            except (AirflowFailException, AirflowSkipException):
                raise
            except (Exception, AirflowTaskTimeout) as error:
                self._show_failure(context, generation, error)
                if generation is None:
                    bought = self.kling_task_id
                    is_remembered = ledger.is_kept and (told is None or told.unrecorded is None)
                else:
                    bought, is_remembered = generation.kling_task_id, generation.is_remembered()
                keep_from_buying_again(
                    error,
                    [] if bought is None else [bought],
                    is_submitting=hook.is_submitting,
                    is_remembered=is_remembered,
                    ledger_at=ledger.place if ledger.is_kept else None,
                    log=self.log,
                )
                raise
            self._lineage = (generation.asked, delivery.files)

    def _open_ledger(self, context: Context) -> Ledger:
        return open_ledger(context, self.ledger_path or config.ledger_path())

    def _show_failure(self, context: Context, generation: Generation | None, error: BaseException) -> None:
        if generation is not None:
            generation.show_failure(error)
        else:
            leave_card(context, lambda: error_card(error), log=self.log)

    def _limits(self) -> PauseEvent:
        now = time.time()
        return PauseEvent(
            deadline=now + self.timeout, attempt_ends_at=end_of_attempt(self.execution_timeout, now=now)
        )

    def _request(self, context: Context) -> VideoRequest:
        """
        Return what is asked for, when an attempt begins.

        :raises InvalidRequestError: where it breaks the service's rules.
        """
        return VideoRequest(**{name: getattr(self, name) for name in _REQUEST_FIELDS})

    def _request_again(self, context: Context) -> VideoRequest:
        """Return what is asked for, when an attempt goes on in another process."""
        return self._request(context)

    def _check_literals(self) -> None:
        fields = {name: getattr(self, name) for name in _REQUEST_FIELDS}
        late = frozenset(name for name, value in fields.items() if comes_later(value))
        if faults := find_faults(fields, unknown=late):
            raise InvalidRequestError(faults)
        if self.ledger_path:
            check_ledger_path(str(self.ledger_path))
        self._check_output()

    def _check_wait(self) -> None:
        """See that nothing hangs on a video that the task does not wait for. Raises ``ValueError`` where it does."""
        if self.outlets and not self.wait_for_completion and not self.callback:
            raise ValueError(
                "outlets need wait_for_completion: this task ends before there is a video, and would tell of one. Give "
                "the outlets to the task that waits, or set callback=True."
            )
        if self.output_path is not None and not self.wait_for_completion:
            raise ValueError(
                "output_path needs wait_for_completion: this task ends before there is a video. Store it with "
                "KlingDownloadVideoOperator."
            )

    def _check_output(self) -> None:
        self._check_wait()
        if not self.wait_for_completion and (untellable := not_told_later(self.outlets)):
            raise ValueError(
                f"No callback can tell {', '.join(map(repr, untellable))}: with wait_for_completion=False and "
                "callback=True, outlets are assets named outright. Give an asset alias or a reference to the task that "
                "waits for the video."
            )
        if self.output_path is not None and not comes_later(self.output_path):
            check_output_path(self.output_path)


class KlingDownloadVideoOperator(BaseOperator):
    """
    Store the video of a task that something else asked for.

    A task that is not over yet is waited for. What is stored already and matches its manifest is not fetched again, and
    is delivered also where the service has deleted it.

    :param kling_task_id: the service's task id.
    :param output_path: where the video is stored; see :class:`KlingGenerateVideoOperator`.
    :param output_conn_id: id of the connection to that storage, where the URI does not name one.
    :param kling_conn_id: id of a connection of type ``kling``, of the account that made the task.
    :param deferrable: wait in the triggerer, without holding a worker. Default: ``[operators] default_deferrable``.
    :param poll_interval: seconds between two queries.
    :param timeout: how long to wait for a task that is not over, seconds or a timedelta, for each attempt.
    :return: XCom as :class:`KlingGenerateVideoOperator` returns it, without what only the submitter knows
        (``estimated_cost_usd``, ``request``).
    :raises ValueError: at parse time, for arguments that cannot be.
    """

    template_fields: Sequence[str] = ("kling_task_id", "output_path", "output_conn_id", "kling_conn_id")
    operator_extra_links = (KlingVideoLink(),)
    ui_color = "#e8def8"

    def __init__(
        self,
        *,
        kling_task_id: str,
        output_path: str | PurePath | ObjectStoragePath,
        output_conn_id: str | None = None,
        kling_conn_id: str = DEFAULT_CONN_ID,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kling_task_id = kling_task_id
        self.output_path = text_of(output_path)
        self.output_conn_id = output_conn_id
        self.kling_conn_id = kling_conn_id
        self.deferrable = deferrable
        self.poll_interval = seconds_above_zero("poll_interval", poll_interval)
        self.timeout = seconds_above_zero("timeout", timeout)
        self._stored: Sequence[StoredFile] = ()
        if not comes_later(self.output_path):
            check_output_path(self.output_path)

    def execute(self, context: Context) -> dict[str, Any]:
        """
        Store the video, after waiting for it where it is not made yet.

        :raises AirflowFailException: where another attempt cannot help.
        :raises KlingError: where it can.
        """
        with raising_to_airflow():
            now = time.time()
            waiting = Waiting(
                task_id_in(self.kling_task_id),
                deadline=min(now + self.timeout, end_of_attempt(self.execution_timeout, now=now)),
                poll_interval=self.poll_interval,
                started=now,
                max_failures=config.max_failed_queries(),
            )
            return self._fetch(context, waiting, is_begun=False)

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """
        Go on when the trigger has fired: ask the service, store what it made, or wait on.

        :param event: what the trigger told. It is a hint; the service is asked again.
        :raises AirflowFailException: where another attempt cannot help.
        :raises KlingError: where it can.
        """
        try:
            told = WaitEvent.from_dict(event)
        except ValueError as error:
            raise AirflowFailException(f"The task was resumed by something that is {error}") from error
        with raising_to_airflow():
            return self._fetch(
                context,
                Waiting.resumed(
                    told, poll_interval=self.poll_interval, max_failures=config.max_failed_queries()
                ),
                is_begun=True,
            )

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Tell OpenLineage of the stored files."""
        return lineage(None, self._stored)

    def _fetch(self, context: Context, waiting: Waiting, *, is_begun: bool) -> dict[str, Any]:
        with closing(KlingHook(self.kling_conn_id)) as hook:
            delivery = Delivery(
                hook,
                context,
                output=output_or_fault(self.output_path, self.output_conn_id),
                outlets=self.outlets,
                log=self.log,
            )
            # Once it has begun, how the video ended matters more: what is wrong with the place is told with that.
            if not is_begun:
                delivery.check()
            with going_on(self.log, "The link to the video could not be shown"):
                KlingVideoLink.push(
                    context,
                    waiting.task_id,
                    None,
                    base_url=hook.settings.base_url,
                    stays=not self.deferrable,
                )
            try:
                over = follow(self, hook, waiting, deferrable=self.deferrable)
                if over.error is None:
                    assert over.task is not None  # noqa: S101 - every outcome without an error has a task
                    result = delivery.deliver(over.task, None)
                elif stored := delivery.remembered(over.error, waiting.task_id):
                    result = delivery.deliver(stored, None, is_again=True)
                else:
                    raise over.error
            except KlingError as error:
                of_a_task_made_elsewhere(error, waiting.task_id)
                if isinstance(error, DownloadError) and error.retryable:
                    error.next_step += " A retry fetches it again and buys nothing."
                failed = error_card(error, kling_task_id=waiting.task_id)
                leave_card(context, lambda: failed, log=self.log)
                metrics.failed(error)
                raise
            self._stored = delivery.files
            leave_card(context, lambda: result_card(result), log=self.log)
            return result
