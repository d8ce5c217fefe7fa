"""What a request will cost, by the service's price table. ``GET /records/{taskId}`` has the truth afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, NamedTuple, TypeAlias

from airflow_provider_kling.api.request import (
    BASE_VIDEO_SECONDS,
    DEFAULT_DURATION_SECONDS,
    DEFAULT_MODE,
    VideoRequest,
)

MAX_PRICE = Decimal(1000)
"""USD per second from which a price counts as a slip of the pen. A limit of ours: the table's dearest is 0.1280."""
MIN_PRICE = Decimal("0.000001")
"""The least price above 0, USD per second; a limit of ours, too."""
_NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?")
_SHOWN_CHARACTERS = 60


class Rate(NamedTuple):
    """
    USD per second of output.

    :param plain: without sound.
    :param sound: with sound; None where that is not known.
    :param original_sound: with the reference video's own sound kept; None where the table has no such price,
        and then the plain one holds.
    """

    plain: Decimal
    sound: Decimal | None = None
    original_sound: Decimal | None = None


class CostRange(NamedTuple):
    """The least and the most that a request can cost, USD, where the length of its ``base`` video is not known."""

    low: Decimal
    high: Decimal


Estimate: TypeAlias = Decimal | CostRange | None
"""What a request is expected to cost, USD; None where nobody knows."""
PriceChanges: TypeAlias = Mapping[tuple[str, str], Mapping[str, Decimal]]
"""Prices that differ, USD per second: by model and mode, then by the name of a field of :class:`Rate`."""


class PriceTable(Mapping[tuple[str, str], Rate]):
    """
    What the service charges, by model and mode. It never changes; :meth:`override` makes another one.

    :param rates: USD per second of output.
    """

    def __init__(self, rates: Mapping[tuple[str, str], Rate]) -> None:
        self._rates = dict(rates)

    def __getitem__(self, key: tuple[str, str]) -> Rate:
        return self._rates[key]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._rates)

    def __len__(self) -> int:
        return len(self._rates)

    def __hash__(self) -> int:
        return hash(frozenset(self._rates.items()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._rates!r})"

    def override(self, changes: PriceChanges) -> PriceTable:
        """
        Return a table with some prices changed; those that are not named stay as they are.

        :param changes: as :func:`read_price_changes` returns them.
        :raises ValueError: where a model or mode is new and has no plain price, naming it.
        """
        rates = dict(self._rates)
        for (model, mode), prices in changes.items():
            rate = rates.get((model, mode))
            if rate is None and "plain" not in prices:
                raise ValueError(
                    f"prices.{model}.{mode}.plain: it is missing, and this package knows no price of model "
                    f"{model!r} in mode {mode!r} that could stand in for it"
                )
            rates[model, mode] = Rate(**prices) if rate is None else rate._replace(**prices)
        return PriceTable(rates)


PRICES = PriceTable(
    {
        ("kling-video-o1", "std"): Rate(Decimal("0.0633"), Decimal("0.0956")),
        ("kling-video-o1", "pro"): Rate(Decimal("0.0853"), Decimal("0.1280")),
        ("kling-v3-omni", "std"): Rate(Decimal("0.0633"), Decimal("0.0956"), Decimal("0.0853")),
        ("kling-v3-omni", "pro"): Rate(Decimal("0.0853"), Decimal("0.1280"), Decimal("0.1059")),
    }
)
"""The service's price table, by model and mode."""


def estimate(
    request: VideoRequest, *, base_video_seconds: float | None = None, prices: PriceTable = PRICES
) -> Estimate:
    """
    Estimate what a request costs, USD.

    :param base_video_seconds: length of the video to be edited, seconds, where it is known; the service bills
        it rounded to the nearest whole one.
    :param prices: what the service charges this account.
    :return: None where the model or mode has no known price; a range where the length of the ``base`` video
        is not known.
    """
    body = request.to_body()
    rate = prices.get((str(body.get("model")), str(body.get("mode", DEFAULT_MODE))))
    per_second = None if rate is None else _per_second(rate, body)
    if per_second is None:
        return None
    if any(video.get("refer_type") in (None, "base") for video in _videos(body)):
        if base_video_seconds is None:
            shortest, longest = BASE_VIDEO_SECONDS
            return CostRange(per_second * shortest, per_second * longest)
        seconds = int(Decimal(str(base_video_seconds)).quantize(Decimal(1), ROUND_HALF_UP))
    else:
        duration = str(body.get("duration", DEFAULT_DURATION_SECONDS))
        if not re.fullmatch("[0-9]{1,4}", duration):
            return None
        seconds = int(duration)
    return per_second * seconds


def highest(cost: Estimate) -> Decimal | None:
    """Return the most that a request can cost, USD: whoever adds up estimates should not find the bill higher."""
    return cost.high if isinstance(cost, CostRange) else cost


def read_prices(value: Any, where: str = "prices", *, base: PriceTable = PRICES) -> PriceTable:
    """
    Read prices that differ from a table.

    :param value: JSON text or a mapping such as ``{"kling-v3-omni": {"std": {"plain": 0.05, "sound": 0.08}}}``, USD
        per second of output by model, mode and ``plain``, ``sound`` or ``original_sound``. A model or mode that the
        table does not have needs ``plain``. None and empty text change nothing.
    :param where: what to call the value in an error.
    :param base: the table that holds where nothing else is said.
    :raises ValueError: where something is wrong with it, naming the key (``prices.kling-v3-omni.std.plain``).
    """
    return base.override(read_price_changes(value, where))


def read_price_changes(value: Any, where: str = "prices") -> PriceChanges:
    """
    Read prices that differ, without a table that they differ from; see :func:`read_prices`.

    :raises ValueError: where something is wrong with it, naming the key.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return {}
    if isinstance(value, str):
        value = _from_json(value, where)
    changes: dict[tuple[str, str], dict[str, Decimal]] = {}
    for model, modes in _named(value, where, "models with their prices").items():
        at_model = f"{where}.{model}"
        for mode, prices in _named(modes, at_model, "modes with their prices").items():
            at_mode = f"{at_model}.{mode}"
            known = changes[model, mode] = {}
            for name, price in _named(prices, at_mode, "prices").items():
                if name not in Rate._fields:
                    raise ValueError(
                        f"{at_mode}.{name}: there is no price of that name, only {', '.join(Rate._fields)}"
                    )
                known[name] = _price(price, f"{at_mode}.{name}")
    return changes


def _per_second(rate: Rate, body: Mapping[str, Any]) -> Decimal | None:
    if body.get("sound") == "on":
        return rate.sound
    keeps = any(video.get("keep_original_sound") == "yes" for video in _videos(body))
    return rate.original_sound if keeps and rate.original_sound is not None else rate.plain


def _videos(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    videos = body.get("video_list")  # extra_body may have put anything there
    return [video for video in videos if isinstance(video, Mapping)] if isinstance(videos, list) else []


def _from_json(text: str, where: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{where}: the name {twice!r} is there twice")
        return found

    try:
        # Not by way of float: money is what was written. The constants are NaN and the infinities.
        return json.loads(
            text, parse_float=Decimal, parse_int=Decimal, parse_constant=Decimal, object_pairs_hook=once
        )
    except (json.JSONDecodeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{where}: it is not JSON ({error})") from None


def _named(value: Any, where: str, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: {_shown(value)} is not an object of {what}")  # noqa: TRY004 - all faults are of one class
    for name in value:
        if not isinstance(name, str) or not name or name != name.strip():
            raise ValueError(f"{where}: {_shown(name)} is not a name")
    return value


def _price(value: Any, where: str) -> Decimal:
    price: Decimal | None = None
    if isinstance(value, Decimal):
        price = value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        price = Decimal(str(value))  # its shortest spelling is what was written
    elif isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        price = Decimal(value.strip())
    # `is_finite` first: a signalling NaN cannot be compared.
    if price is None or not price.is_finite() or not (price == 0 or MIN_PRICE <= price <= MAX_PRICE):
        raise ValueError(
            f"{where}: {_shown(value)} is not a price in USD per second, 0 or {MIN_PRICE} to {MAX_PRICE}"
        )
    return abs(price)  # -0 would be shown as such


def _shown(value: Any) -> str:
    text = str(value) if isinstance(value, Decimal) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
