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


def test_percent_and_initials() -> None:
    assert numbers.percent(0.474) == "47 %"
    assert numbers.initials("Grandma’s kitchen") == "GK"
    assert numbers.initials("…") == "?"
