"""Columns as the head of a table shows them: of the sampled rows of a file that was read."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from app.contracts.base import Contract
from app.datasets.turns import text_of

BARS = 12


class Histogram(Contract):
    """Equal bins between `low` and `high` (the highest 1 % is in the last one). `unit` is words, items or empty."""

    low: float = 0
    high: float = 0
    unit: str = ""
    bars: list[int] = Field(default_factory=list)


class ColumnShape(Contract):
    """A column as the head of a table shows it."""

    name: str
    kind: str
    filled: int
    distinct: int
    histogram: Histogram


def histogram(values: Sequence[float], unit: str = "") -> Histogram:
    """A histogram of at most twelve bars that an outlier does not squeeze: the range ends at the 99th percentile."""
    if not values:
        return Histogram(unit=unit)
    ordered = sorted(values)
    low, top = ordered[0], ordered[-1]
    high = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    bins = min(BARS, max(1, int(high - low) + 1)) if all(float(v).is_integer() for v in (low, high)) else BARS
    width = (high - low) / bins or 1.0
    bars = [0] * bins
    for value in ordered:
        bars[min(bins - 1, int((value - low) / width))] += 1
    return Histogram(low=low, high=top, unit=unit, bars=bars)


def column_shapes(rows: Sequence[dict[str, Any]], kinds: dict[str, str]) -> list[ColumnShape]:
    """The columns of sampled rows, in order."""
    shapes = []
    for name, kind in kinds.items():
        cells = [cell for row in rows if (cell := row.get(name)) not in (None, "")]
        if kind == "Number":
            values, unit = [float(c) for c in cells if isinstance(c, int | float)], ""
        elif kind == "List":
            values, unit = [float(len(c)) for c in cells if isinstance(c, list)], "items"
        elif cells and all(_is_number(c) for c in cells):
            kind, values, unit = "Number", [float(c) for c in cells], ""
        else:
            values, unit = [float(len(text_of(c).split())) for c in cells], "words"
        distinct = len({text_of(c) for c in cells})
        shapes.append(
            ColumnShape(
                name=name, kind=kind or "Empty", filled=len(cells), distinct=distinct, histogram=histogram(values, unit)
            )
        )
    return shapes


def _is_number(cell: Any) -> bool:
    """Whether a text is a plain number (not a code with leading zeros, not “nan” or “inf”)."""
    if not isinstance(cell, str) or len(cell) > 18 or (len(cell) > 1 and cell[0] == "0" and cell[1] != "."):
        return False
    return cell.removeprefix("-").replace(".", "", 1).isdecimal() and cell.isascii()
