"""What a request is expected to cost."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given

from airflow_provider_kling.api.pricing import PRICES, CostRange, estimate
from airflow_provider_kling.api.request import VideoRequest

from .contract import rules_broken_by
from .strategies import BRIEF, NEWER, O1, V3, request_fields

CLIP = "https://example.com/v.mp4"


def cost_of(*, base_video_seconds: float | None = None, **fields: Any) -> Decimal | CostRange | None:
    return estimate(VideoRequest(prompt="a cat", **fields), base_video_seconds=base_video_seconds)


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
