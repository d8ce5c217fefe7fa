"""The link to a video in Airflow's UI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom

from airflow_provider_kling.api.protocol import query_call

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, Context, TaskInstanceKey


class KlingVideoLink(BaseOperatorLink):
    """
    Leads to the video, and before it is there to where the service tells of its task.

    Airflow's UI reads the link from XCom, so it is pushed as soon as there is a task id and again with the result.
    """

    name = "Kling video"

    @property
    def xcom_key(self) -> str:
        """The XCom that holds the link."""
        return "kling_video_link"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the link that was pushed last, empty where nothing was submitted."""
        link: Any = XCom.get_value(ti_key=ti_key, key=self.xcom_key)
        return link if isinstance(link, str) else ""

    @classmethod
    def push(cls, context: Context, kling_task_id: str, video_url: str | None, *, base_url: str) -> None:
        """Store the link for a task of the service, which is the video's as soon as there is one."""
        call = query_call(kling_task_id)
        link = video_url or f"{base_url}{call.path}?{urlencode(call.params)}"
        context["ti"].xcom_push(key=cls().xcom_key, value=link)
