"""What stops a request before it costs money: its author's limit, and an account without enough money."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_kling.api.errors import KlingError, NoCreditsError, ServiceError
from airflow_provider_kling.api.pricing import CostRange, Estimate, highest

if TYPE_CHECKING:
    from airflow_provider_kling.api.task import Balance
    from airflow_provider_kling.hooks.kling import KlingHook
    from airflow_provider_kling.waiting import TaskLog

CURRENCY = "USD"
"""The currency of all prices, limits and estimates."""
MAX_USD = Decimal(1_000_000_000)
"""USD from which an amount counts as a slip of the pen."""


class BudgetExceededError(KlingError, ValueError):
    """What is asked for costs more than its author allows, or nobody knows what it costs; nothing was sent."""

    default_next_step = (
        "Nothing was sent and nothing was billed. Ask for less or raise max_cost_usd; a retry cannot help."
    )


class InsufficientBalanceError(NoCreditsError):
    """The account holds less than what is asked for can cost; nothing was sent."""

    default_next_step = (
        "Nothing was sent and nothing was billed. Top up the account at https://apimodels.app, then clear the task; a "
        "retry before that cannot help."
    )


def usd(name: str, value: Any) -> Decimal:
    """
    Read an amount of money that an author wrote.

    :param name: the argument's name, for the error.
    :param value: USD: an int, a float (taken for what it is written as), a Decimal, or one of them as text.
    :raises ValueError: where it is no amount from 0 to :data:`MAX_USD`.
    """
    amount: Decimal | None = None
    if isinstance(value, (int, float, str, Decimal)) and not isinstance(value, bool):
        try:
            amount = Decimal(str(value).strip())
        except ArithmeticError:
            amount = None
    # `is_finite` first: a signalling NaN cannot be compared.
    if amount is None or not amount.is_finite() or not 0 <= amount <= MAX_USD:
        raise ValueError(f"{name} must be an amount of USD, 0 or more; got {value!r}")
    return abs(amount)  # -0 would be shown as such


def shown(amount: Decimal) -> str:
    """Return an amount of USD for people: to the cent, or to the millionth where it is not a whole number of cents."""
    # Rounded to cents, an estimate just above a limit would look equal to it.
    if abs(amount) > MAX_USD:
        return f"{amount:.6E} USD"  # in full it could be a text of any length
    cents, exact = (amount.quantize(Decimal(unit), ROUND_HALF_UP) for unit in ("0.01", "0.000001"))
    return f"{cents} USD" if cents == exact else f"{exact.normalize():f} USD"


def check_budget(estimates: Sequence[Estimate], max_cost_usd: Decimal | None) -> Decimal | None:
    """
    Hold what is asked for to its author's limit, as a whole, before any of it is paid.

    :param estimates: what each request is expected to cost, USD. Of a range the upper end counts.
    :param max_cost_usd: the most that all of them together may cost, USD; None for no limit.
    :return: the most that all of them together can cost, USD; None where a price is not known.
    :raises BudgetExceededError: where that is more than the limit, or not known although there is a limit.
    """
    known = [cost for cost in map(highest, estimates) if cost is not None]
    unknown = len(estimates) - len(known)
    total = sum(known, Decimal(0))
    many = len(estimates) > 1
    if max_cost_usd is None:
        return None if unknown else total
    if total > max_cost_usd:
        subject = f"The {len(estimates)} requests together are" if many else "The request is"
        up_to = "up to " if any(isinstance(cost, CostRange) for cost in estimates) else ""
        left_out = f" (without {unknown} of them, whose price is not known)" if unknown else ""
        raise BudgetExceededError(
            f"{subject} estimated to cost {up_to}{shown(total)}{left_out}, more than the limit of "
            f"{shown(max_cost_usd)} (max_cost_usd)"
        )
    if unknown:
        subject = (
            f"The price of {unknown} of the {len(estimates)} requests" if many else "The request's price"
        )
        raise BudgetExceededError(
            f"{subject} is not known, so it cannot be held to the limit of {shown(max_cost_usd)} (max_cost_usd)",
            next_step=(
                "Nothing was sent and nothing was billed. Give the price of the model and mode in [kling] prices or "
                "in the connection's extra 'prices', or leave max_cost_usd out; a retry cannot help."
            ),
        )
    return total


def check_balance(hook: KlingHook, needed: Decimal | None, *, log: TaskLog) -> Balance | None:
    """
    Ask the service whether the account holds enough for what is asked for. That is free.

    Money held for tasks that run is not available. Other tasks of the same account may spend what is found here.

    :param needed: the most that it can cost, USD; None where that is not known, and then there must be something.
    :param log: where to tell that the service does not tell.
    :return: the account's money; None where the service does not tell, or not in USD: that stops nothing.
    :raises InsufficientBalanceError: where the account holds less.
    :raises ServiceError: where there was no usable answer. Nothing was sent that costs anything.
    """
    try:
        balance = hook.get_balance()
    except ServiceError as error:
        what_next = "A retry asks again." if error.retryable else error.next_step
        error.next_step = f"Nothing was billed: the balance is asked for before the video. {what_next}"
        raise
    if balance is None:
        return None  # the hook has told so
    if balance.currency.upper() != CURRENCY:
        log.log(
            logging.WARNING,
            "The service tells the balance in %s, which cannot be compared with an estimate in %s; going on.",
            balance.currency,
            CURRENCY,
        )
        return None
    if needed is None:
        log.log(
            logging.WARNING,
            "The price is not known, so check_balance can only see that the account is not empty: it has %s.",
            shown(balance.available),
        )
    if balance.available <= 0 if needed is None else balance.available < needed:
        raise InsufficientBalanceError(
            f"The account has {shown(balance.available)} available; "
            + ("the request costs more" if needed is None else f"up to {shown(needed)} are needed")
            + (f" ({shown(balance.frozen)} are held for tasks that run)" if balance.frozen else "")
        )
    return balance
