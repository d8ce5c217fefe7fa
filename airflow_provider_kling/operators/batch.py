"""The operator that makes many videos in one task."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
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
from airflow_provider_kling.airflow_versions import AIRFLOW_V_3_1_PLUS
from airflow_provider_kling.api.errors import InvalidRequestError, KlingError
from airflow_provider_kling.api.request import DEFAULT_MODEL
from airflow_provider_kling.arguments import (
    check_callback,
    is_made_from_mapped,
    one_of,
    read_output_path,
    seconds_above_zero,
    text_of,
)
from airflow_provider_kling.assets import after_rehearsal, tell_outlets_of_many
from airflow_provider_kling.batch_requests import ITEM_FIELDS, REQUEST_FIELDS, literal_faults, read_items
from airflow_provider_kling.batch_result import FailOn, VideosFailedError, paths_in, summary
from airflow_provider_kling.budget import usd
from airflow_provider_kling.card import CardState, leave_card, list_card
from airflow_provider_kling.exceptions import OutputUnusableError, going_on, raising_to_airflow
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.hooks.settings import DEFAULT_CONN_ID
from airflow_provider_kling.ledger import SubmissionKey
from airflow_provider_kling.lineage import lineage_of_many
from airflow_provider_kling.links.kling import KlingVideoLink
from airflow_provider_kling.output_path import Coordinates, check_ledger_path, uri_of
from airflow_provider_kling.settlement import keep_from_buying_again
from airflow_provider_kling.submission import OnExpiredResult, OnUnknownSubmission
from airflow_provider_kling.waiting import DEFAULT_POLL_INTERVAL, DEFAULT_TIMEOUT, end_of_attempt

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_kling.batch import Batch, BatchEvent
    from airflow_provider_kling.batch_requests import Item

DEFAULT_MAX_IN_FLIGHT = 20
"""Videos of one task that are at the service at a time."""
MOST_IN_FLIGHT = 500
"""More would make the trigger's arguments larger than a database likes: each video takes about 100 bytes there."""
_RESULTS_NAME = "{dag_id}.{run_id}.{task_id}.{map_index}.results.json"


class KlingGenerateVideoBatchOperator(BaseOperator):
    """
    Ask Kling Omni-Video for many videos in one task, wait until they are made, and return where each is.

    At most ``max_in_flight`` are at the service at a time. While they are made the task is deferred; a worker comes
    back only to ask for the next ones and to store what is there. Each video has an entry of its own in the ledger,
    under what is asked for: a retry asks only for what is not paid for, in whatever order the list comes back. Items
    that are equal are different videos, each of which is billed.

    The fields of the request that stand beside ``requests`` hold for every item that does not name them itself; see
    :class:`~airflow_provider_kling.operators.kling.KlingGenerateVideoOperator` for these and for what is not said here.

    :param requests: a list of dicts of request fields, each with an ``output_path`` of its own if it likes; text
        stands for a prompt. Or a template that renders to such a list as JSON, or an XCom argument. An empty list is a
        success.
    :param output_path: a directory, or a file's name with ``{kling_task_id}``; see
        :class:`~airflow_provider_kling.operators.kling.KlingGenerateVideoOperator`. A document with all results lies
        beside the videos.
    :param max_in_flight: how many videos are at the service at a time, 1 to 500. A busy service has fewer for a while.
    :param max_cost_usd: the most that all of them together may cost by the estimate, USD; else none is asked for.
    :param check_balance: whether to ask the service for the account's money before the first of them.
    :param dry_run: True to stop after all requests are checked and their cost is estimated.
    :param deferrable: wait in the triggerer, without holding a worker. Default: ``[operators] default_deferrable``.
    :param callback: True to have the service tell Airflow when a video is done: needs ``deferrable``, Airflow 3.1 or
        later and ``[kling] callback_base_url``. A query every ``[kling] callback_poll_interval`` seconds takes the
        place of ``poll_interval``. An item's own ``callback_url`` goes to the service untouched, and that video is
        asked for as ever.
    :param poll_interval: seconds between two queries about one video.
    :param timeout: how long to wait for each video from its submit on, seconds or a timedelta.
    :param fail_on: ``any`` to fail where a video is not there, ``all`` where none of them is, ``none`` to succeed
        whatever became of them. A list that was not done (``max_failures``, no money, a refused key) always fails.
    :param max_failures: stop asking for more once more than so many failed; None to go on. What is at the service is
        waited for and stored.
    :param ledger_path: directory on local disk or object storage, shared by all workers, where the submissions are
        remembered. Default: ``[kling] ledger_path``, else Airflow's task state store (3.3 and later).
    :param on_unknown_submission: what to do about a request of an earlier attempt that was sent and never answered:
        ``fail`` leaves that video out and names it, ``resubmit`` asks again, which buys a second if there is a first.
    :param on_expired_result: what to do about a video that was paid for and is deleted by now: ``fail``, or
        ``resubmit``, which buys it again.
    :return: XCom with ``total``, ``completed``, ``failed`` (nothing billed), ``unresolved`` (may be billed),
        ``undelivered`` (billed, not fetched), ``not_submitted``, ``estimated_cost_usd``, ``recorded_cost_usd``,
        ``results`` (one dict for each item, in order; None where there are more than 100) and ``results_path`` (the
        document with all of them). A task that fails leaves it too.
    :raises InvalidRequestError: at parse time, for literal values that the service would refuse, each with its place.
    :raises ValueError: at parse time, for other arguments that cannot be.
    """

    template_fields: Sequence[str] = (
        "requests",
        *REQUEST_FIELDS,
        "kling_conn_id",
        "output_path",
        "output_conn_id",
    )
    template_fields_renderers = {  # noqa: RUF012 - Airflow declares it as an instance's attribute
        "requests": "json",
        "image_list": "json",
        "element_list": "json",
        "video_list": "json",
        "multi_prompt": "json",
        "extra_body": "json",
    }
    operator_extra_links = (KlingVideoLink(),) if AIRFLOW_V_3_1_PLUS else ()
    ui_color = "#e8def8"

    def __init__(
        self,
        *,
        requests: str | Sequence[str | Mapping[str, Any]],
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
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        max_cost_usd: float | str | Decimal | None = None,
        check_balance: bool = False,
        dry_run: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        callback: bool = False,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        fail_on: str = FailOn.ANY,
        max_failures: int | None = None,
        ledger_path: str | None = None,
        on_unknown_submission: str = OnUnknownSubmission.FAIL,
        on_expired_result: str = OnExpiredResult.FAIL,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.requests = requests
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
        self.max_in_flight = _whole("max_in_flight", max_in_flight, 1, MOST_IN_FLIGHT)
        self.max_cost_usd = None if max_cost_usd is None else usd("max_cost_usd", max_cost_usd)
        self.check_balance = check_balance
        self.is_dry_run = dry_run
        self.deferrable = deferrable
        self.callback = callback
        self.poll_interval = seconds_above_zero("poll_interval", poll_interval)
        self.timeout = seconds_above_zero("timeout", timeout)
        self.fail_on = one_of("fail_on", fail_on, FailOn)
        self.max_failures = None if max_failures is None else _whole("max_failures", max_failures, 0)
        self.ledger_path = ledger_path
        self.on_unknown_submission = one_of(
            "on_unknown_submission", on_unknown_submission, OnUnknownSubmission
        )
        self.on_expired_result = one_of("on_expired_result", on_expired_result, OnExpiredResult)
        self.is_killed = False
        self._items: Sequence[Item] = ()
        self._files: list[str] = []
        if callback:
            check_callback(callback_url=callback_url, waits_on_worker=not deferrable)
        # A mapped task is made when it runs, where an error of this place would be retried: it is checked then.
        if is_made_from_mapped(self):
            return
        if faults := literal_faults(requests, self._common()):
            raise InvalidRequestError(faults)
        if self.ledger_path:
            check_ledger_path(str(self.ledger_path))

    def execute(self, context: Context) -> dict[str, Any]:
        """
        Ask for the videos, or take up what an earlier attempt asked for, and see all of them through.

        :raises AirflowFailException: where another attempt cannot help.
        :raises KlingError: where it can.
        """
        with self._batch(context) as batch:
            if batch is None:
                self.log.info("The list of requests is empty: there is nothing to ask for.")
                counts = summary(()) | {"results_path": None}
                if self.is_dry_run:
                    result = counts | {"state": "dry_run", "results": []}
                    return after_rehearsal(context, self.outlets, result)
                leave_card(context, lambda: list_card(counts, state=CardState.COMPLETED), log=self.log)
                tell_outlets_of_many(context, self.outlets, counts, (), log=self.log)
                return counts | {"results": []}
            if self.is_dry_run:
                return after_rehearsal(context, self.outlets, batch.rehearse())
            if AIRFLOW_V_3_1_PLUS and not self.deferrable:
                with going_on(self.log, "The link to the videos could not be shown"):
                    KlingVideoLink.push_page(context)
            return batch.start(end_of_attempt(self.execution_timeout, now=time.time()))

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """
        Go on when the trigger has fired: store what is there, ask for the next ones, or wait on.

        :param event: what the trigger told. It is a hint; the service is asked again.
        :raises AirflowFailException: where another attempt cannot help.
        :raises KlingError: where it can.
        """
        # Imported here: who only reads a Dag needs none of it.
        from airflow_provider_kling.batch import BatchEvent

        try:
            told = BatchEvent.from_dict(event)
        except ValueError as error:
            raise AirflowFailException(
                f"The task was resumed by something that is {error}. Its videos may be completed and billed: their "
                "Kling task ids are in this task's log. Clear the task to take them up again."
            ) from error
        with self._batch(context, told) as batch:
            assert batch is not None  # noqa: S101 - an attempt that waits has a list
            return batch.resume(told, lambda: self._rendered(context))

    def on_kill(self) -> None:
        """Stop submits that are about to happen, and say what becomes of the videos: the service has no cancel."""
        self.is_killed = True
        self.log.warning(
            "The Airflow task was killed, but the service has no cancel: the videos that it has been asked for go on "
            "and will be billed when they are completed. Their Kling task ids are in this log."
        )

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Tell OpenLineage of the references and of the stored files."""
        return lineage_of_many((item.request.to_body() for item in self._items), self._files)

    @contextmanager
    def _batch(self, context: Context, told: BatchEvent | None = None) -> Iterator[Batch | None]:
        # Imported here: who only reads a Dag needs none of it.
        from airflow_provider_kling.batch import Batch
        from airflow_provider_kling.batch_ledger import open_batch_ledger

        batch: Batch | None = None
        ledger = open_batch_ledger(context, self._place_of_ledger())
        with closing(KlingHook(self.kling_conn_id)) as hook, raising_to_airflow():
            try:
                if told is not None:
                    # Whatever renders otherwise by now: first what is paid for has to be known.
                    batch = Batch(self, context, hook, ledger)
                else:
                    try:
                        items, results_at = self._rendered(context)
                    except KlingError as error:
                        batch = Batch(self, context, hook, ledger)
                        batch.refuse(error)
                    batch = Batch(self, context, hook, ledger, items, results_at) if items else None
                yield batch
            except KlingError as error:
                if not isinstance(error, VideosFailedError):  # each of its videos is counted
                    metrics.failed(error)
                self._show_failure(context, batch, error)
                raise
            except (AirflowFailException, AirflowSkipException):
                raise
            except (Exception, AirflowTaskTimeout) as error:
                self._show_failure(context, batch, error)
                bought = batch.kling_task_ids if batch is not None else []
                unnamed = 0
                if not bought and told is not None:
                    # The ledger was not read: this process knows how many they are, and of some which.
                    bought = list(told.over)
                    unnamed = max(0, told.state.billable - len(bought))
                keep_from_buying_again(
                    error,
                    bought,
                    unnamed=unnamed,
                    is_submitting=hook.is_submitting,
                    is_remembered=ledger.is_kept,
                    log=self.log,
                )
                raise
            finally:
                if batch is not None:
                    self._files = [uri_of(path) for _, _, path in paths_in(batch.ended)]

    def _show_failure(self, context: Context, batch: Batch | None, error: BaseException) -> None:
        if batch is not None:
            batch.show_failure(error)
        else:
            leave_card(context, lambda: list_card({}, state=CardState.FAILED, error=error), log=self.log)

    def _rendered(self, context: Context) -> tuple[Sequence[Item], str | None]:
        """Return the list, and where the document with its results goes: None where there is no place for it."""
        output = None
        if self._stores or self.output_path:
            try:
                output = read_output_path(self.output_path, self.output_conn_id)
            except ValueError as error:
                raise OutputUnusableError(str(error), next_step="This attempt has sent nothing.") from error
        self._items = read_items(self.requests, self._common())
        if output is not None:
            return self._items, output.beside(Coordinates.of(context), _RESULTS_NAME)
        if ledger_path := self._place_of_ledger():
            return self._items, f"{ledger_path.rstrip('/')}/{SubmissionKey.of(context).path}/results.json"
        return self._items, None

    def _place_of_ledger(self) -> str | None:
        return self.ledger_path or config.ledger_path()

    def _common(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ITEM_FIELDS}


def _whole(name: str, value: Any, least: int, most: float = math.inf) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        up_to = "" if math.isinf(most) else f" to {most:g}"
        raise ValueError(f"{name} must be a whole number from {least}{up_to}; got {value!r}")
    return value
