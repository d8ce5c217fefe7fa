"""A request on its way to the service: its references are looked at, its price is known, its limits are held."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowConfigException

from airflow_provider_kling.api.errors import KlingError
from airflow_provider_kling.api.pricing import Estimate, estimate, highest
from airflow_provider_kling.budget import check_balance, check_budget
from airflow_provider_kling.references import References
from airflow_provider_kling.result import Asked, describe_request

if TYPE_CHECKING:
    from airflow_provider_kling.api.request import VideoRequest
    from airflow_provider_kling.hooks.kling import KlingHook
    from airflow_provider_kling.waiting import Uploads


class Order:
    """
    What one task asks for.

    :param hook: the service.
    :param request: as the author wrote it; references may be files.
    :param max_cost_usd: the most that it may cost by the estimate, USD; None for no limit.
    :param check_balance: whether the account is asked for its money before the submit.
    :param check_place: makes sure that there is a place for the result; what it raises stops the submit.
    :param log: where to tell about it.
    """

    def __init__(
        self,
        hook: KlingHook,
        request: VideoRequest,
        *,
        max_cost_usd: Decimal | None = None,
        check_balance: bool = False,
        check_place: Callable[[], None] | None = None,
        log: Any,
    ) -> None:
        self.request = request
        self._hook = hook
        self._references = References(hook, request, log)
        self._max_cost_usd = max_cost_usd
        self._checks_balance = check_balance
        self._check_place = check_place
        self._log = log

    @cached_property
    def cost(self) -> Estimate:
        """
        What it will cost, USD.

        :raises InvalidRequestError: where a reference is none that the service takes.
        :raises ConnectionSettingsError: where the connection's prices are wrong.
        :raises AirflowConfigException: where the configured ones are.
        """
        return estimate(
            self.request, base_video_seconds=self._base_video_seconds, prices=self._hook.settings.prices
        )

    @property
    def asked(self) -> Asked:
        """What results tell of it, without the price where its references cannot be read any more."""
        try:
            return Asked.of(self.request, self.cost, base_video_seconds=self._base_video_seconds)
        except (KlingError, AirflowConfigException):
            return Asked.of(self.request, None)

    def describe(self) -> str:
        """Return it in one line for the log."""
        try:
            cost = self.cost
        except (KlingError, AirflowConfigException):
            cost = None  # told where it matters: an earlier attempt may have asked for the video already
        return describe_request(self.request, cost)

    def identity(self) -> Mapping[str, Any]:
        """
        Return what tells it apart from another order.

        :raises InvalidRequestError: where a reference cannot be read.
        """
        return self._references.identity()

    def check(self) -> None:
        """
        Hold it to its limits. Nothing is sent but the question for the balance, where that is asked for.

        :raises InvalidRequestError: where a reference is none that the service takes.
        :raises BudgetExceededError: where it would cost more than it may.
        :raises NoCreditsError: where the account has too little money for it.
        """
        if self._check_place is not None:
            self._check_place()
        check_budget([self.cost], self._max_cost_usd)
        if self._checks_balance:
            check_balance(self._hook, highest(self.cost), log=self._log)

    def ready(self) -> VideoRequest:
        """
        Return the request as the service takes it, with its files uploaded. To be called right before the submit.

        :raises KlingError: as :meth:`check` does, or where a file could not be uploaded; nothing is billed.
        """
        self.check()
        return self._uploaded

    @property
    def uploads(self) -> Uploads:
        """What was uploaded for it, for another process of this attempt."""
        return self._references.uploads

    def take_up(self, uploads: Uploads) -> None:
        """Use what another process of this attempt has uploaded."""
        self._references.take_up(uploads)

    @cached_property
    def _uploaded(self) -> VideoRequest:
        return self._references.upload()

    @property
    def _base_video_seconds(self) -> float | None:
        return self._references.check().base_video_seconds
