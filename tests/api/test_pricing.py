"""What a request is expected to cost."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_kling.api.pricing import (
    MAX_PRICE,
    MIN_PRICE,
    PRICES,
    CostRange,
    PriceTable,
    Rate,
    estimate,
    highest,
    read_prices,
)
from airflow_provider_kling.api.request import VideoRequest

from .contract import rules_broken_by
from .strategies import BRIEF, NEWER, O1, V3, request_fields

CLIP = "https://example.com/v.mp4"


def cost_of(
    *, base_video_seconds: float | None = None, prices: PriceTable = PRICES, **fields: Any
) -> Decimal | CostRange | None:
    request = VideoRequest(prompt="a cat", **fields)
    return estimate(request, base_video_seconds=base_video_seconds, prices=prices)


def style(**more: Any) -> list[dict[str, Any]]:
    return [{"video_url": CLIP, "refer_type": "feature", **more}]


@pytest.mark.parametrize(
    ("model", "mode", "plain", "sound", "original_sound"),
    [
        (O1, "std", "0.0633", "0.0956", None),
        (O1, "pro", "0.0853", "0.1280", None),
        (V3, "std", "0.0633", "0.0956", "0.0853"),
        (V3, "pro", "0.0853", "0.1280", "0.1059"),
    ],
)
@pytest.mark.parametrize("seconds", [3, 5, 10])
def test_the_price_table_is_kept_to_the_last_digit(
    model: str, mode: str, plain: str, sound: str, original_sound: str | None, seconds: int
) -> None:
    fields: dict[str, Any] = {"model": model, "mode": mode, "duration": seconds}

    assert cost_of(**fields) == Decimal(plain) * seconds
    assert cost_of(**fields, sound="off") == Decimal(plain) * seconds
    assert cost_of(**fields, sound="on") == Decimal(sound) * seconds
    kept = cost_of(**fields, video_list=style(keep_original_sound="yes"))
    assert kept == Decimal(original_sound or plain) * seconds
    assert cost_of(**fields, video_list=style(keep_original_sound="no")) == Decimal(plain) * seconds
    assert cost_of(**fields, video_list=style()) == Decimal(plain) * seconds


def test_the_table_has_nothing_else() -> None:
    assert set(PRICES) == {(O1, "std"), (O1, "pro"), (V3, "std"), (V3, "pro")}


def test_an_estimate_is_an_exact_amount_of_usd() -> None:
    cost = cost_of(model=V3, duration=15, mode="pro", sound=True)

    assert isinstance(cost, Decimal)
    assert str(cost) == "1.9200"


def test_what_is_left_out_is_std_five_seconds_and_no_sound() -> None:
    assert cost_of(model=O1) == cost_of(model=O1, mode="std", duration=5, sound="off") == Decimal("0.3165")


def test_a_storyboard_costs_its_whole_duration() -> None:
    shots = [{"prompt": "a", "duration": 4}, {"prompt": "b", "duration": 8}]

    cost = cost_of(multi_shot=True, shot_type="customize", multi_prompt=shots, duration=12)
    assert cost == Decimal("0.7596")


def test_an_unknown_model_or_mode_has_no_known_price() -> None:
    assert cost_of(model=NEWER) is None
    assert cost_of(model=NEWER, video_list=[CLIP]) is None
    assert cost_of(model=V3, extra_body={"mode": "4k"}) is None
    assert cost_of(model=V3, extra_body={"mode": None}) is None
    assert cost_of(model=V3, extra_body={"duration": "soon"}) is None


def test_extra_fields_count_since_they_are_what_is_sent() -> None:
    assert cost_of(model=V3, extra_body={"duration": 20, "mode": "pro"}) == Decimal("1.7060")
    assert cost_of(model=NEWER, extra_body={"model": O1}) == Decimal("0.3165")
    assert cost_of(model=V3, extra_body={"video_list": [{"video_url": CLIP}]}) == CostRange(
        Decimal("0.1899"), Decimal("0.6330")
    )
    assert cost_of(model=V3, video_list=[CLIP], extra_body={"video_list": None}) == Decimal("0.3165")


@pytest.mark.parametrize("videos", ["junk", 5, {"video_url": CLIP}, [None], ["junk"], None])
def test_an_odd_video_list_in_extra_fields_is_no_video(videos: Any) -> None:
    assert cost_of(model=V3, extra_body={"video_list": videos}) == Decimal("0.3165")


# A video that is edited


@pytest.mark.parametrize("refer_type", ["base", None])
def test_an_edited_video_of_unknown_length_gives_a_range_from_3_to_10_seconds(refer_type: str | None) -> None:
    video_list = [{"video_url": CLIP, "refer_type": refer_type}]

    assert cost_of(model=O1, video_list=video_list) == CostRange(
        low=Decimal("0.1899"), high=Decimal("0.6330")
    )
    kept = cost_of(model=V3, mode="pro", video_list=[{**video_list[0], "keep_original_sound": "yes"}])
    assert kept == CostRange(Decimal("0.3177"), Decimal("1.0590"))


def test_the_duration_of_the_request_does_not_count_for_an_edited_video() -> None:
    assert cost_of(model=O1, video_list=[CLIP], duration=10) == cost_of(model=O1, video_list=[CLIP])
    assert cost_of(model=O1, video_list=[CLIP], duration=10, base_video_seconds=3) == Decimal("0.1899")


@pytest.mark.parametrize(
    ("seconds", "billed"),
    [(3, 3), (4.49, 4), (4.5, 5), (5.0, 5), (5.49999, 5), (5.5, 6), (6.5, 7), (9.99, 10), (10.04, 10)],
)
def test_an_edited_video_is_billed_by_its_nearest_whole_second(seconds: float, billed: int) -> None:
    cost = cost_of(model=V3, video_list=[CLIP], base_video_seconds=seconds)

    assert cost == Decimal("0.0633") * billed


def test_the_length_of_an_input_counts_only_where_it_is_edited() -> None:
    assert cost_of(model=V3, video_list=style(), base_video_seconds=9) == Decimal("0.3165")
    assert cost_of(model=V3, base_video_seconds=9) == Decimal("0.3165")


@BRIEF
@given(request_fields())
def test_every_request_of_a_known_model_has_a_price(fields: dict[str, Any]) -> None:
    if rules_broken_by(fields):
        return
    cost = estimate(VideoRequest(**fields))

    if fields["model"] == NEWER:
        assert cost is None
    elif isinstance(cost, CostRange):
        assert Decimal(0) < cost.low < cost.high
    else:
        assert isinstance(cost, Decimal)
        assert Decimal("0.0633") * 3 <= cost <= Decimal("0.1280") * 15


@pytest.mark.parametrize(
    ("cost", "most"),
    [(None, None), (Decimal(3), Decimal(3)), (CostRange(Decimal(1), Decimal(2)), Decimal(2))],
)
def test_of_a_range_the_upper_end_is_the_highest_cost(
    cost: Decimal | CostRange | None, most: Decimal | None
) -> None:
    assert highest(cost) == most


# Prices that differ for an account


def test_a_changed_price_is_what_an_estimate_counts_with() -> None:
    prices = read_prices('{"kling-v3-omni": {"std": {"plain": 0.05, "sound": 0.08, "original_sound": 0.07}}}')

    assert cost_of(model=V3, prices=prices) == Decimal("0.25")
    assert cost_of(model=V3, sound="on", prices=prices) == Decimal("0.40")
    kept = style(keep_original_sound="yes")
    assert cost_of(model=V3, video_list=kept, prices=prices) == Decimal("0.35")
    assert cost_of(model=V3, video_list=[CLIP], prices=prices) == CostRange(Decimal("0.15"), Decimal("0.50"))


def test_what_is_not_named_keeps_its_price() -> None:
    prices = read_prices({V3: {"std": {"sound": "0.08"}}})

    assert prices[V3, "std"] == PRICES[V3, "std"]._replace(sound=Decimal("0.08"))
    assert {key: rate for key, rate in prices.items() if key != (V3, "std")} == {
        key: rate for key, rate in PRICES.items() if key != (V3, "std")
    }


def test_changes_upon_changes_add_up_and_the_later_one_wins() -> None:
    first = read_prices({V3: {"std": {"plain": 1, "sound": 2}}})
    second = read_prices({V3: {"std": {"sound": 3}}}, base=first)

    assert second[V3, "std"] == Rate(Decimal(1), Decimal(3), PRICES[V3, "std"].original_sound)


def test_a_table_does_not_change_when_another_is_made_of_it() -> None:
    before = dict(PRICES)
    read_prices({V3: {"std": {"plain": 9}}, "newer": {"std": {"plain": 9}}})
    assert dict(PRICES) == before


@pytest.mark.parametrize("nothing", [None, "", "  \n", "{}", {}, {V3: {}}, {V3: {"std": {}}}])
def test_nothing_changes_nothing(nothing: Any) -> None:
    assert read_prices(nothing) == PRICES


def test_a_new_model_or_mode_gets_a_price() -> None:
    prices = read_prices({NEWER: {"std": {"plain": 0.2}}, V3: {"4k": {"plain": 0.3}}})

    assert cost_of(model=NEWER, prices=prices) == Decimal("1.0")
    assert cost_of(model=V3, extra_body={"mode": "4k"}, prices=prices) == Decimal("1.5")


def test_a_price_with_sound_that_nobody_told_is_not_known() -> None:
    prices = read_prices({NEWER: {"std": {"plain": 0.2}}})
    assert cost_of(model=NEWER, sound="on", prices=prices) is None


@pytest.mark.parametrize("prices", ['{"newer": {"std": {"sound": 1}}}', {"newer": {"std": {}}}])
def test_a_new_model_needs_its_plain_price(prices: Any) -> None:
    with pytest.raises(ValueError, match=r"^prices\.newer\.std\.plain: it is missing"):
        read_prices(prices)


def test_money_is_what_was_written_and_not_a_float_beside_it() -> None:
    written = '{"kling-v3-omni": {"std": {"plain": 0.1000000000000000055511151231, "sound": 0.07}}}'

    of_text = read_prices(written)[V3, "std"]
    assert str(of_text.plain) == "0.1000000000000000055511151231"
    assert str(read_prices(json.loads(written))[V3, "std"].sound) == "0.07"


@pytest.mark.parametrize("price", [0, 0.0, -0.0, "0", "0.05", " 0.05 ", 5, MIN_PRICE, MAX_PRICE])
def test_these_are_prices(price: Any) -> None:
    found = read_prices({V3: {"std": {"plain": price}}})[V3, "std"].plain
    assert found == Decimal(str(price).strip())
    assert not found.is_signed()


BAD_PRICES: list[Any] = [
    *(-1, -0.05, "-0.05", float("nan"), float("inf"), -float("inf"), "NaN", "Infinity", True, False, None),
    *("", "five", "0,05", "1e3", "1_0", "٣", "0.05 USD", "$1", [0.05], {"usd": 1}, b"1"),
    *(Decimal("NaN"), Decimal("sNaN"), Decimal("1e-400"), MAX_PRICE + 1, 10**400, 1e308),
]


@pytest.mark.parametrize("price", BAD_PRICES, ids=lambda price: str(price)[:20])
def test_what_is_no_price_is_refused_with_its_key(price: Any) -> None:
    with pytest.raises(ValueError, match=r"^prices\.kling-v3-omni\.std\.plain: .* is not a price") as raised:
        read_prices({V3: {"std": {"plain": price}}})
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "price", ["-1", "NaN", "Infinity", "-Infinity", "1e999999999", "1e-999999999", "true", "null", "9" * 5000]
)
def test_what_is_no_price_in_json_is_refused_with_its_key(price: str) -> None:
    with pytest.raises(ValueError, match=r"^prices\.kling-v3-omni\.pro\.sound: .* is not a price") as raised:
        read_prices(f'{{"kling-v3-omni": {{"pro": {{"sound": {price}}}}}}}')
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("{", "prices: it is not JSON"),
        ("kling-v3-omni=1", "prices: it is not JSON"),
        ("[" * 100_000, "prices: it is not JSON"),
        ("0.05", "prices: 0.05 is not an object"),
        ([], "prices: [] is not an object"),
        (5, "prices: 5 is not an object"),
        ({V3: 0.05}, f"prices.{V3}: 0.05 is not an object"),
        ({V3: {"std": 0.05}}, f"prices.{V3}.std: 0.05 is not an object"),
        ({V3: {"std": None}}, f"prices.{V3}.std: None is not an object"),
        ({V3: {"std": {"plane": 1}}}, f"prices.{V3}.std.plane: there is no price of that name"),
        ({V3: {"std": {"Plain": 1}}}, f"prices.{V3}.std.Plain: there is no price of that name"),
        ({"": {}}, "prices: '' is not a name"),
        ({V3: {" std": {}}}, f"prices.{V3}: ' std' is not a name"),
        ({5: {}}, "prices: 5 is not a name"),
        ('{"kling-v3-omni": {"std": {"plain": 1, "plain": 2}}}', "prices: the name 'plain' is there twice"),
    ],
)
def test_what_is_no_list_of_prices_is_refused_with_its_key(value: Any, told: str) -> None:
    with pytest.raises(ValueError) as raised:
        read_prices(value)
    assert str(raised.value).startswith(told)


def test_the_names_that_there_are_are_told() -> None:
    with pytest.raises(ValueError, match="plain, sound, original_sound"):
        read_prices({V3: {"std": {"loud": 1}}})


def test_the_error_calls_the_value_what_the_reader_calls_it() -> None:
    with pytest.raises(ValueError, match=r"^rates\.kling-v3-omni\.std\.plain: "):
        read_prices({V3: {"std": {"plain": -1}}}, "rates")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([V3, "std", "plain", "sound", "x", ""]), inner, max_size=3)
    ),
    max_leaves=12,
)


@BRIEF
@given(JSON_VALUES)
def test_whatever_is_given_is_prices_or_a_fault_with_a_name(value: Any) -> None:
    for written in (value, json.dumps(value)):
        try:
            prices = read_prices(written)
        except ValueError as error:
            assert str(error).startswith("prices")  # noqa: PT017
        else:
            assert all(
                price is None or (price.is_finite() and 0 <= price <= MAX_PRICE)
                for rate in prices.values()
                for price in rate
            )
