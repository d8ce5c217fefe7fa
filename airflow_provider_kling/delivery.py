"""What becomes of a completed video: it is stored, its cost is asked for, and all who wait for it are told."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_kling import metrics
from airflow_provider_kling.api.errors import NoResultError, ResultExpiredError, TaskNotFoundError
from airflow_provider_kling.assets import tell_outlets
from airflow_provider_kling.costs import recorded_cost
from airflow_provider_kling.exceptions import STAYS_PAID, OutputUnusableError, StorageError, going_on
from airflow_provider_kling.links.kling import KlingVideoLink
from airflow_provider_kling.manifest import manifest_document
from airflow_provider_kling.output_path import Coordinates, OutputPath
from airflow_provider_kling.result import Asked, video_result

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_kling.api.errors import KlingError
    from airflow_provider_kling.api.task import RecordedCost, VideoTask
    from airflow_provider_kling.hooks.kling import KlingHook
    from airflow_provider_kling.storage import ResultStorage, StoredFile


class Delivery:
    """
    Brings completed videos home for one Airflow task.

    :param hook: the service.
    :param context: Airflow's context of the task.
    :param output: where the files go; None to leave them with the service, which deletes them after 7 days. Or what is
        wrong with that place, where it is found so late that a video may be paid for: it is told when a file is to go
        there, since how the video ended matters more, and before anything is paid.
    :param outlets: the assets that the task updates.
    :param log: where to tell about it.
    """

    def __init__(
        self,
        hook: KlingHook,
        context: Context,
        *,
        output: OutputPath | ValueError | None,
        outlets: Sequence[Any] = (),
        log: Any,
    ) -> None:
        self._hook = hook
        self._context = context
        self._outlets = outlets
        self._log = log
        self._coordinates = Coordinates.of(context)
        self._fault = output if isinstance(output, ValueError) else None
        self._storage = self._open(output) if isinstance(output, OutputPath) else None
        self.files: list[StoredFile] = []

    def _open(self, output: OutputPath) -> ResultStorage:
        # What reads and writes files takes long to import, and who stores nothing needs none of it.
        from airflow_provider_kling.storage import ResultStorage

        return ResultStorage(self._hook, output, self._coordinates, log=self._log)

    def is_there(self, task: VideoTask) -> bool:
        """Tell whether a completed video can still be had, from the service or from where it was stored."""
        return self._hook.result_is_there(task.video_url or "") or self.was_stored(task.task_id)

    def was_stored(self, kling_task_id: str) -> bool:
        """
        Tell whether a Kling task's video lies where this one would store it.

        :raises StorageError: where nobody can tell.
        """
        self._require_place(kling_task_id)
        return self._storage is not None and self._storage.find(kling_task_id) is not None

    def remembered(self, error: KlingError, kling_task_id: str) -> VideoTask | None:
        """
        Return a Kling task whose video lies where this one would store it, where the service has deleted it.

        :param error: what the wait for the task ended with.
        :raises StorageError: where the place cannot be asked.
        """
        if self._storage is None or not isinstance(error, (TaskNotFoundError, NoResultError)):
            return None
        task = self._storage.remembered(kling_task_id)
        if task is not None:
            self._log.info("The service has deleted Kling task %s, but its video is stored.", kling_task_id)
        return task

    def has_kept(self, path: str, kling_task_id: str, size_bytes: int | None) -> bool:
        """
        Tell whether a Kling task's video lies where this one would store it, without reading it.

        :param path: where it was stored.
        :param size_bytes: how large it was then.
        """
        return self._storage is not None and self._storage.has_kept(path, kling_task_id, size_bytes)

    def check(self) -> None:
        """
        Make sure that there is such a place as the author named, before anything is paid.

        :raises OutputUnusableError: where there cannot be, or its kind or its connection is not known here.
        """
        if self._fault is not None:
            raise OutputUnusableError(
                str(self._fault),
                next_step="This attempt has sent nothing. Correct output_path, then clear the task.",
            ) from self._fault
        if self._storage is not None:
            self._storage.check()

    def deliver(self, task: VideoTask, asked: Asked | None, *, is_again: bool = False) -> dict[str, Any]:
        """
        Store a completed video, and tell of it.

        :param is_again: whether it was delivered before, and so is counted already.
        :return: what goes to XCom.
        :raises DownloadError: where it cannot be stored: it is paid for, and a retry fetches it again at no cost.
        """
        noticed_at = time.time()
        self.files = self.store(task)
        recorded = recorded_cost(self._hook, task.task_id, log=self._log)
        result = self.complete(task, asked, self.files, recorded, noticed_at=None if is_again else noticed_at)
        with going_on(self._log, "The link to the video could not be shown"):
            KlingVideoLink.push(
                self._context,
                task.task_id,
                task.video_url,
                base_url=self._hook.settings.base_url,
                stays=False,
            )
        tell_outlets(self._context, self._outlets, result, self.files, log=self._log)
        return result

    def store(self, task: VideoTask) -> list[StoredFile]:
        """
        Store a completed video where the files go; without such a place nothing is done.

        :raises DownloadError: where it cannot be stored: it is paid for, and a retry fetches it again at no cost.
        """
        self._require_place(task.task_id)
        if self._storage is None:
            return []
        if task.result_urls:
            return self._storage.store(task)
        # The service does not know it any more.
        if found := self._storage.find(task.task_id):
            return found
        raise ResultExpiredError(
            f"The stored video of Kling task {task.task_id} vanished, and the service does not know it any more",
            task_id=task.task_id,
        )

    def _require_place(self, kling_task_id: str) -> None:
        if self._fault is not None:
            raise StorageError(
                f"There is no place for the video: {self._fault}",
                task_id=kling_task_id,
                next_step=f"Does output_path hang on what is gone by now? {STAYS_PAID}",
            ) from self._fault

    def complete(
        self,
        task: VideoTask,
        asked: Asked | None,
        files: Sequence[StoredFile],
        recorded: RecordedCost | None,
        *,
        noticed_at: float | None,
    ) -> dict[str, Any]:
        """
        Write down what is known of a stored video, and count it.

        :param files: what :meth:`store` returned.
        :param recorded: what the service recorded as its cost.
        :param noticed_at: when it was first seen that it is completed, epoch seconds; None where it was counted then.
        :return: what is known of it, as plain JSON.
        :raises DownloadError: where its manifest cannot be written.
        """
        if self._storage:
            document = manifest_document(task, asked, self._coordinates, recorded)
            self._storage.write_manifests(files, document)
        result = video_result(task, asked, files=files, recorded=recorded)
        if noticed_at is not None:
            metrics.completed(task, asked, recorded, noticed_at=noticed_at)
        self._say(task, result)
        return result

    def _say(self, task: VideoTask, result: dict[str, Any]) -> None:
        seconds = "" if task.generation_seconds is None else f" after {task.generation_seconds:.0f} s"
        places = [file["path"] for file in result["files"]] or [(task.video_url or "").partition("?")[0]]
        self._log.info("Kling task %s is completed%s: %s", task.task_id, seconds, ", ".join(places))
        if result["recorded_cost_usd"] is not None:
            self._log.info("It cost %.4f USD by the service's records.", result["recorded_cost_usd"])
