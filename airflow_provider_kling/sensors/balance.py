"""The sensor that waits until the account has enough money."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_kling.api.errors import KlingError
from airflow_provider_kling.api.protocol import balance_call, read_balance
from airflow_provider_kling.balance import (
    DEFAULT_POKE_INTERVAL,
    BalanceEvent,
    BalanceOutcome,
    BalanceOver,
    BalanceWaiting,
    balance_result,
)
from airflow_provider_kling.budget import shown, usd
from airflow_provider_kling.config import max_failed_queries
from airflow_provider_kling.exceptions import to_airflow
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.hooks.settings import DEFAULT_CONN_ID
from airflow_provider_kling.sensors.ending import skipping_where_told
from airflow_provider_kling.waiting import AskAgain, end_of_attempt, note_to

if TYPE_CHECKING:
    from decimal import Decimal

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_kling.api.task import Balance


class KlingBalanceSensor(BaseSensorOperator):
    """
    Wait until the account has enough money for what comes next.

    What counts is what can be spent now: money that is held for tasks that run does not. Nothing is reserved; other
    tasks of the same account may spend it first.

    ``mode``, ``soft_fail``, ``timeout`` and the other arguments of Airflow's sensors mean what they mean there. In mode
    ``reschedule`` each question is asked in a process of its own, so failed ones, and failed look-ups of the
    connection, are borne until ``timeout``.

    :param min_balance_usd: what must be available, USD.
    :param kling_conn_id: id of a connection of type ``kling``.
    :param deferrable: wait in the triggerer, without holding a worker. Default: ``[operators] default_deferrable``.
    :param poke_interval: seconds between two questions.
    :return: XCom with ``available``, ``total``, ``frozen`` and ``currency``, as the service tells them.
    :raises ValueError: at parse time, where ``min_balance_usd`` is no amount of money.
    """

    template_fields: Sequence[str] = ("kling_conn_id",)
    ui_color = "#e8def8"

    def __init__(
        self,
        *,
        min_balance_usd: Decimal | float | str,
        kling_conn_id: str = DEFAULT_CONN_ID,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: float | timedelta = DEFAULT_POKE_INTERVAL,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.min_balance_usd = usd("min_balance_usd", min_balance_usd)
        self.kling_conn_id = kling_conn_id
        self.deferrable = deferrable
        self._poking: BalanceWaiting | None = None

    def execute(self, context: Context) -> Any:
        """
        Wait on the worker, or ask once and wait in the triggerer.

        :raises AirflowSensorTimeout: where there is not enough in time.
        :raises BalanceTooLowError: where there is not enough within ``execution_timeout``; a retry waits anew.
        :raises AirflowFailException: where the service refuses to be asked, or does not tell balances.
        :raises KlingError: where another attempt can help.
        """
        if not self.deferrable:
            return super().execute(context)
        with skipping_where_told(self):
            return self._follow(self._waiting(limit=self.timeout))

    def poke(self, context: Context) -> PokeReturnValue:
        """Ask once whether there is enough. How long to go on is for Airflow's sensor to decide."""
        self._poking = self._poking or self._waiting(limit=math.inf)
        with closing(KlingHook(self.kling_conn_id)) as hook:
            decision = self._ask(hook, self._poking)
        if isinstance(decision, AskAgain):
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=balance_result(self._found(decision)))

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """
        Go on when the trigger has fired: ask the service, and either be done or wait on.

        :param event: what the trigger told. It is a hint; the service is asked again.
        """
        with skipping_where_told(self):
            try:
                told = BalanceEvent.from_dict(event)
            except ValueError as error:
                raise AirflowFailException(
                    f"The sensor was resumed by something that is {error}. Nothing was billed; clear the task to wait "
                    "anew."
                ) from error
            return self._follow(
                BalanceWaiting.resumed(
                    told,
                    self.min_balance_usd,
                    poll_interval=self.poke_interval,
                    max_failures=max_failed_queries(),
                )
            )

    def _follow(self, waiting: BalanceWaiting) -> dict[str, Any]:
        attempt_ends_at = end_of_attempt(self.execution_timeout, now=waiting.started)
        waiting.deadline = min(waiting.deadline, attempt_ends_at)
        with closing(KlingHook(self.kling_conn_id)) as hook:
            decision = self._ask(hook, waiting)
            if isinstance(decision, AskAgain):
                # Imported here: who only reads a Dag needs no trigger.
                from airflow_provider_kling.triggers.balance import KlingBalanceTrigger

                self.log.info("Deferring: the triggerer waits for the money.")
                self.defer(
                    trigger=KlingBalanceTrigger.of(waiting, kling_conn_id=self.kling_conn_id),
                    method_name="execute_complete",
                    timeout=waiting.net(time.time()),
                )
        return balance_result(self._found(decision, is_last_attempt=waiting.deadline < attempt_ends_at))

    def _ask(self, hook: KlingHook, waiting: BalanceWaiting) -> AskAgain | BalanceOver:
        call = balance_call()
        try:
            # Not hook.get_balance(): that repeats by itself, and would say that it goes on without a balance.
            balance = read_balance(call, hook.get_conn().send(call))
        except KlingError as error:
            decision = waiting.on_error(error, time.time())
        else:
            decision = waiting.on_balance(balance, time.time())
        note_to(self.log, decision)
        return decision

    def _found(self, over: BalanceOver, *, is_last_attempt: bool = True) -> Balance:
        if over.error is not None:
            self._fail(over, is_last_attempt=is_last_attempt)
        assert over.balance is not None  # noqa: S101 - the outcome without an error has one
        self.log.info("The account has %s available.", shown(over.balance.available))
        return over.balance

    @staticmethod
    def _fail(over: BalanceOver, *, is_last_attempt: bool) -> NoReturn:
        error = over.error
        assert error is not None  # noqa: S101 - told apart by the caller
        if over.outcome is BalanceOutcome.TIMED_OUT:
            if is_last_attempt:
                raise AirflowSensorTimeout(str(error)) from error
            error.retryable = True
            error.next_step = (
                "Nothing was billed. A retry waits anew; top up the account at https://apimodels.app."
            )
        raise to_airflow(error)

    def _waiting(self, *, limit: float) -> BalanceWaiting:
        now = time.time()
        return BalanceWaiting(
            self.min_balance_usd,
            deadline=now + limit,
            poll_interval=self.poke_interval,
            started=now,
            max_failures=max_failed_queries(),
        )
