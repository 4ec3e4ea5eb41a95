"""Numbers, sizes, times and durations as people read them, and numbers as they write them. No state but the locale."""

import math
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from babel.dates import format_date, format_datetime, format_time
from babel.numbers import format_compact_decimal, format_decimal, get_group_symbol

LOCALE = "en_GB"
_IS_COMMA = get_group_symbol(LOCALE) == ","
_BLANKS = re.compile(r"[\s_']")
_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
_GROUPED_BY_POINTS = re.compile(r"[+-]?\d{1,3}(\.\d{3})+,\d*")
_TWO_WAYS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


class TwoMeanings(ValueError):
    """A number whose comma may part thousands or begin the decimals."""


def whole(text: str) -> int:
    """A whole number as people write it: 1000, 1,000 and 1 000. Raises ValueError, also for decimals."""
    plain = _BLANKS.sub("", text)
    return int(plain.replace(",", "") if _GROUPED.fullmatch(plain) else plain)


def decimal(text: str) -> float:
    """A number as people write it: 0.5, 0,5, 1,234.5 and 1.234,5. Raises ValueError, also for what is not finite.

    TwoMeanings for 1,000: read as 1 where a thousand was meant, it would change a training without a word.
    """
    plain = _BLANKS.sub("", text)
    if _TWO_WAYS.fullmatch(plain):
        as_thousands, as_decimals = plain.replace(",", ""), f"{float(plain.replace(',', '.')):g}"
        raise TwoMeanings(f"This can be read as {as_thousands} or as {as_decimals}. Write it without the comma.")
    if _GROUPED_BY_POINTS.fullmatch(plain):
        plain = plain.replace(".", "").replace(",", ".")
    elif _GROUPED.fullmatch(plain) and ("." in plain or plain.count(",") > 1):
        plain = plain.replace(",", "")
    value = float(plain.replace(",", "."))
    if not math.isfinite(value):
        raise ValueError("Write a finite number.")
    return value


def number(value: float | None, digits: int = 0) -> str:
    """48,210 · 1.81. A dash where there is no value."""
    if value is None or value != value:
        return "–"
    if isinstance(value, int) and not digits and _IS_COMMA:
        # A table page shows hundreds of whole numbers, and the general way takes 0.1 ms for each.
        return f"{value:,}"
    pattern = "#,##0" + ("." + "0" * digits if digits else "")
    return format_decimal(value, format=pattern, locale=LOCALE)


def counted(count: float, one: str, many: str = "") -> str:
    """1 step · 3,200 steps · 2.5 passes. `many` where it is not the word with an s."""
    text = number(count) if count == int(count) else f"{count:g}"
    return f"{text} {one if count == 1 else many or one + 's'}"


def plain(value: float, digits: int = 6) -> str:
    """A figure with so many digits and no exponent: 0.00002 where others write 2e-05."""
    return format(Decimal(f"{value:.{digits}g}"), "f")


def loss(value: float | None) -> str:
    """A loss with the digits that tell it from the next one: 12.4 · 1.81 · 0.024 · 0.0013."""
    if value is None or value != value or not value:
        return number(value, 2)
    digits = 1 if value >= 10 else 2 if value >= 0.1 else 3 if value >= 0.01 else 4
    return number(value, digits)


def compact(value: float | None) -> str:
    """40k · 1.2M, for tiles where the exact number does not matter."""
    return "–" if value is None else format_compact_decimal(value, fraction_digits=1, locale=LOCALE)


def percent(share: float | None, digits: int = 0) -> str:
    """A share from 0 to 1 as "47 %"."""
    return "–" if share is None else f"{number(share * 100, digits)} %"


def size(count: float | None) -> str:
    """Bytes as 212 MB (powers of 1000, as file browsers show them)."""
    if count is None:
        return "–"
    amount = float(count)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            break
        amount /= 1000
    if unit == "bytes":
        return f"{number(amount)} {'byte' if count == 1 else 'bytes'}"
    return f"{number(amount, 1 if amount < 99.95 else 0)} {unit}"


def duration(seconds: float | None) -> str:
    """Seconds as 45 s · 36 min · 1 h 20 min · 3 d 4 h."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 1:
        return "under 1 s"
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """A moment as people say it: just now · 2 min ago · Today, 09:28 · Yesterday · Tuesday · 3 November."""
    if moment is None:
        return "–"
    now = (now or datetime.now(UTC)).astimezone()
    moment = _aware(moment).astimezone()
    passed = (now - moment).total_seconds()
    if -60 < passed < 45:
        return "just now"
    if 0 < passed < 3600:
        return f"{max(1, round(passed / 60))} min ago"
    days = (now.date() - moment.date()).days
    if days == 0:
        return f"Today, {format_time(moment, 'HH:mm', locale=LOCALE)}"
    if days == 1:
        return "Yesterday"
    if 1 < days < 7:
        return format_date(moment, "EEEE", locale=LOCALE)
    same_year = moment.year == now.year
    return format_date(moment, "d MMMM" if same_year else "d MMMM yyyy", locale=LOCALE)


def clock(moment: datetime | None) -> str:
    """Hour and minute on this machine's clock: 12:53."""
    return "–" if moment is None else format_time(_aware(moment).astimezone(), "HH:mm", locale=LOCALE)


def in_full(moment: datetime | None) -> str:
    """Day and time, for tooltips and logs: 21 Nov 2026, 12:53."""
    return "–" if moment is None else format_datetime(_aware(moment).astimezone(), "d MMM yyyy, HH:mm", locale=LOCALE)


def later(seconds: float | None) -> str:
    """The clock time that lies so many seconds ahead."""
    return "–" if seconds is None else clock(datetime.now(UTC) + timedelta(seconds=seconds))


def initials(name: str) -> str:
    """At most two letters for a tile: Grandma's kitchen → GK."""
    words = [word for word in name.split() if word[0].isalnum()]
    return "".join(word[0] for word in words[:2]).upper() or "?"


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
