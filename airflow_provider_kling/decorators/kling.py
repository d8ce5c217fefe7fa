"""``@task.kling_video``: a function that says what the video shows, as a task that makes it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from airflow.providers.common.compat.sdk import DecoratedOperator, context_merge, task_decorator_factory
from airflow.providers.common.compat.sdk import determine_kwargs as arguments_for

from airflow_provider_kling.api.errors import InvalidRequestError, KlingError
from airflow_provider_kling.api.request import Fault, VideoRequest, find_faults
from airflow_provider_kling.arguments import comes_later
from airflow_provider_kling.exceptions import FunctionNotCalledAgainError
from airflow_provider_kling.generation import asked_before
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator

if TYPE_CHECKING:
    from pathlib import PurePath

    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath, TaskDecorator

    from airflow_provider_kling.api.request import ImageReference, Shot, VideoReference, WatermarkInfo

_CALLBACK_URL = "callback_url"
_RETURNABLE = tuple(name for name in VideoRequest.model_fields if name != _CALLBACK_URL)


class VideoRequestFields(TypedDict, total=False):
    """
    What a function under ``@task.kling_video`` may return.

    The fields are those of :class:`~airflow_provider_kling.api.request.VideoRequest`.
    """

    model: str
    prompt: str | None
    mode: str | None
    duration: str | int | None
    aspect_ratio: str | None
    sound: str | bool | None
    image_list: Sequence[str | PurePath | ObjectStoragePath | Mapping[str, Any] | ImageReference] | None
    element_list: Sequence[int | Mapping[str, Any]] | None
    video_list: Sequence[str | PurePath | ObjectStoragePath | Mapping[str, Any] | VideoReference] | None
    multi_shot: bool | None
    shot_type: str | None
    multi_prompt: Sequence[Mapping[str, Any] | Shot] | None
    watermark_info: bool | Mapping[str, Any] | WatermarkInfo | None
    extra_body: Mapping[str, Any] | None


class KlingVideoDecoratedOperator(DecoratedOperator, KlingGenerateVideoOperator):
    """
    Asks for the video that a function describes; see :func:`kling_video_task`.

    :param python_callable: returns the prompt, or fields of the request.
    :param op_args: its positional arguments, templated.
    :param op_kwargs: its keyword arguments, templated.
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *KlingGenerateVideoOperator.template_fields,
    )
    template_fields_renderers = {  # noqa: RUF012 - Airflow declares it as an instance's attribute
        **DecoratedOperator.template_fields_renderers,
        **KlingGenerateVideoOperator.template_fields_renderers,
    }
    custom_operator_name = "@task.kling_video"

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, **kwargs)

    def _request(self, context: Context) -> VideoRequest:
        context_merge(context, self.op_kwargs)
        arguments = arguments_for(self.python_callable, self.op_args, context)
        returned = self.python_callable(*self.op_args, **arguments)
        return VideoRequest(**self._defaults() | self._fields(returned))

    def _request_again(self, context: Context) -> VideoRequest:
        asked = asked_before(context)
        if asked is None or not asked.is_whole:
            why = (
                "is not in its XCom any more" if asked is None else "held a file in Base64, too large to keep"
            )
            raise FunctionNotCalledAgainError(
                f"What {self._name} returned {why}, so this attempt cannot go on where it paused"
            )
        # It is a secret, and XCom is open to all who can read the Dag.
        callback = {} if self.callback_url is None else {_CALLBACK_URL: self.callback_url}
        return VideoRequest.from_body({**asked.request, **callback})

    def _fields(self, returned: Any) -> dict[str, Any]:
        if isinstance(returned, str):
            return {"prompt": returned}
        if not isinstance(returned, Mapping):
            raise KlingError(
                f"{self._name} returned {_described(returned)}; a function under @task.kling_video returns the prompt "
                "as text, or a dict of request fields",
                next_step="Nothing was sent and nothing was billed. Correct the function; a retry cannot help.",
            )
        if faults := [
            Fault(str(name), value, _why_not(name))
            for name, value in returned.items()
            if name not in _RETURNABLE
        ]:
            raise InvalidRequestError(faults)
        return dict(returned)

    def _defaults(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in VideoRequest.model_fields}

    goes_on_from_xcom = True

    def execute(self, context: Context) -> Any:
        """Ask for the video that the function describes, as the operator does."""
        return self._split(super().execute(context))

    def execute_again(self, context: Context, event: Any = None) -> Any:
        """Ask once more, as the operator does."""
        return self._split(super().execute_again(context, event))

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """Go on when the trigger has fired, as the operator does."""
        return self._split(super().execute_complete(context, event))

    def _split(self, result: dict[str, Any]) -> dict[str, Any]:
        # Each entry becomes an XCom of its own, and Airflow 3.0 takes no None. To pull it gives None either way.
        if not self.multiple_outputs:
            return result
        return {name: value for name, value in result.items() if value is not None}

    @staticmethod
    def xcom_push(context: Any, key: str, value: Any, **_: Any) -> None:
        """Push an XCom. Airflow 3.0's own base of such tasks asks for this, and brings it no more."""
        context["ti"].xcom_push(key=key, value=value)

    def _check_literals(self) -> None:
        # What the decorator leaves out may come from the function, so a rule that reads it has to wait.
        fields = self._defaults()
        late = frozenset(name for name, value in fields.items() if value is None or comes_later(value))
        if faults := find_faults(fields, unknown=late):
            raise InvalidRequestError(faults)
        self._check_output()

    @property
    def _name(self) -> str:
        return f"{getattr(self.python_callable, '__name__', 'the function')}()"


def kling_video_task(
    python_callable: Callable[..., Any] | None = None,
    *,
    multiple_outputs: bool | None = None,
    **kwargs: Any,
) -> TaskDecorator:
    """
    Make a task out of a function that says what the video shows: ``@task.kling_video``.

    The function returns the prompt, or a dict of request fields (:class:`VideoRequestFields`). It is called once for
    each attempt, when that begins, and not again when the task resumes after a deferral. What it returns is taken as
    it is: Jinja in it is not rendered. Its arguments may be XCom arguments, templates, and names out of Airflow's
    context.

    A retry calls the function again. What an earlier attempt has bought is taken up only where it returns the same
    again, so a function that asks another model for a prompt belongs into a task of its own, whose XCom this one takes.

    :param python_callable: the function.
    :param multiple_outputs: True to have each entry of the result in an XCom of its own. It is never read off the
        function's annotation, which tells of the request and not of the result.
    :param kwargs: arguments of :class:`~airflow_provider_kling.operators.kling.KlingGenerateVideoOperator`. Those that
        are request fields hold where the function returns nothing else for them. They have to be a valid request among
        themselves, except that no prompt is needed. ``callback_url`` can be given here only.
    :return: what the operator returns.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        multiple_outputs=bool(multiple_outputs),
        decorated_operator_class=KlingVideoDecoratedOperator,
        **kwargs,
    )


def _why_not(name: Any) -> str:
    if name == _CALLBACK_URL:
        return "it is an argument of the decorator only, since what a function returns is kept in XCom for all to see"
    if name in ("output_path", "max_cost_usd", "deferrable", "kling_conn_id", "timeout", "poll_interval"):
        return "it is an argument of the decorator, and no field of the request"
    return f"no such field; there are {', '.join(_RETURNABLE)}"


def _described(value: Any) -> str:
    return "nothing (None)" if value is None else f"a value of type {type(value).__name__}"
