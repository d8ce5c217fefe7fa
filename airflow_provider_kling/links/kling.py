"""The link to a video in Airflow's UI."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom

from airflow_provider_kling.airflow_versions import AIRFLOW_V_3_1_PLUS
from airflow_provider_kling.api.protocol import query_call
from airflow_provider_kling.output_path import Coordinates
from airflow_provider_kling.page_address import page_address

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, Context, TaskInstanceKey


class KlingVideoLink(BaseOperatorLink):
    """
    Leads to the page "Kling videos", opened at the video.

    From Airflow 3.1 on, Airflow stores it by itself whenever a process of the task ends, also for a deferral. Before,
    there is no such page: then it leads to the video at the service, and before that is there to where the service
    tells of its task.
    """

    name = "Kling video"

    @property
    def xcom_key(self) -> str:
        """The XCom that holds the link."""
        return "kling_video_link"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the link; before Airflow 3.1 that which was pushed last, empty where nothing was submitted."""
        if AIRFLOW_V_3_1_PLUS:
            return _to_page(ti_key)
        link: Any = XCom.get_value(ti_key=ti_key, key=self.xcom_key)
        return link if isinstance(link, str) else ""

    @classmethod
    def push(
        cls, context: Context, kling_task_id: str, video_url: str | None, *, base_url: str, stays: bool
    ) -> None:
        """
        Store the link for a task of the service, where Airflow does not do that in a moment.

        :param video_url: the service's link to its video, as soon as there is one.
        :param base_url: where the service is.
        :param stays: whether this process goes on to wait.
        """
        if AIRFLOW_V_3_1_PLUS:
            if stays:
                cls.push_page(context)
            return
        call = query_call(kling_task_id)
        link = video_url or f"{base_url}{call.path}?{urlencode(call.params)}"
        context["ti"].xcom_push(key=cls().xcom_key, value=link)

    @classmethod
    def push_page(cls, context: Context) -> None:
        """Store the link to the page (Airflow 3.1 and later)."""
        context["ti"].xcom_push(key=cls().xcom_key, value=_to_page(context["ti"]))


def _to_page(ti: Any) -> str:
    return page_address(**asdict(Coordinates.of_instance(ti)))
