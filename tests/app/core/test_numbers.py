"""Numbers, sizes, times and durations as people read them."""

from datetime import UTC, datetime, timedelta

import pytest

from app.core import numbers


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(48210, 0, "48,210"), (1.8149, 2, "1.81"), (0, 0, "0"), (None, 0, "–"), (float("nan"), 2, "–")],
)
def test_numbers(value: float | None, digits: int, text: str) -> None:
    assert numbers.number(value, digits) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.44, "12.4"), (1.814, "1.81"), (0.0242, "0.024"), (0.00134, "0.0013"), (0.0, "0.00"), (None, "–")],
)
def test_losses_keep_the_digits_that_tell_them_apart(value: float | None, text: str) -> None:
    assert numbers.loss(value) == text


def test_small_rates_have_no_exponent() -> None:
    assert [numbers.plain(value) for value in (2e-5, 0.0002, 1.5, 3.0, 1e6, 0.0)] == [
        "0.00002", "0.0002", "1.5", "3", "1000000", "0",
    ]  # fmt: skip
    assert numbers.plain(0.00066123, 3) == "0.000661"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.0 kB"), (212_000_000, "212 MB"), (8.4e9, "8.4 GB")],
)
def test_sizes(count: float, text: str) -> None:
    assert numbers.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "under 1 s"),
        (45, "45 s"),
        (59.6, "1 min"),
        (2160, "36 min"),
        (4800, "1 h 20 min"),
        (7200, "2 h"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert numbers.duration(seconds) == text


def test_moments_are_said_as_people_say_them() -> None:
    now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
    assert numbers.ago(now - timedelta(seconds=5), now) == "just now"
    assert numbers.ago(now - timedelta(minutes=2), now) == "2 min ago"
    assert numbers.ago(now - timedelta(hours=30), now) == "Yesterday"
    assert numbers.ago(now - timedelta(days=4), now) == "Tuesday"
    assert numbers.ago(now - timedelta(days=18), now) == "3 November"
    assert numbers.ago(now - timedelta(days=400), now) == "17 October 2025"


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", 0.5), ("0,5", 0.5), ("1e-4", 1e-4), (" 86 400 ", 86400), ("86,400.5", 86400.5), ("1.234,5", 1234.5),
     ("1,000,000", 1e6), ("0,001", 0.001), ("12,5", 12.5), ("-3", -3)],
)  # fmt: skip
def test_decimals_as_people_write_them(text: str, value: float) -> None:
    assert numbers.decimal(text) == value


def test_a_comma_that_may_part_thousands_is_not_guessed() -> None:
    with pytest.raises(numbers.TwoMeanings, match=r"as 86400 or as 86\.4"):
        numbers.decimal("86,400")
    assert numbers.whole("86,400") == numbers.whole("86 400") == 86400


@pytest.mark.parametrize("text", ["2,5", "2.5", "", "many", "1,00", "1e3"])
def test_what_is_no_whole_number_is_never_read_as_one(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        numbers.whole(text)


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", "", "1,2,3", "x"])
def test_what_is_no_finite_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"could not convert|finite number"):
        numbers.decimal(text)


def test_one_of_a_thing_is_not_several() -> None:
    assert numbers.counted(1, "step") == "1 step"
    assert numbers.counted(3200, "step") == "3,200 steps"
    assert numbers.counted(0.5, "pass", "passes") == "0.5 passes"


def test_percent_and_initials() -> None:
    assert numbers.percent(0.474) == "47 %"
    assert numbers.initials("Grandma’s kitchen") == "GK"
    assert numbers.initials("…") == "?"
