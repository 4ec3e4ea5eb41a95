"""One pass over rows: counts, lengths and labels, small enough to keep with a version and to draw in a table head."""

from collections import Counter
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


class Statistics(Contract):
    """What is in a set of examples. Lengths in words; characters are counted for the estimate of tokens."""

    rows: int = 0
    chat_rows: int = 0
    text_rows: int = 0
    turns: int = 0
    words: int = 0
    characters: int = 0
    with_system: int = 0
    distinct_questions: int = 0
    questions: Histogram = Field(default_factory=Histogram)
    answers: Histogram = Field(default_factory=Histogram)
    labels: list[tuple[str, int]] = Field(default_factory=list, description="the 50 most frequent")
    distinct_labels: int = 0


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


class Counting:
    """Feed it examples one by one, then ask for the statistics. Memory: 8 bytes a row and a length."""

    def __init__(self) -> None:
        self._statistics = Statistics()
        self._questions: Counter[int] = Counter()
        self._answers: Counter[int] = Counter()
        self._labels: Counter[str] = Counter()
        self._distinct: set[int] = set()

    def add(self, example: dict[str, Any]) -> None:
        """Count one example."""
        found = self._statistics
        found.rows += 1
        if example["kind"] == "text":
            found.text_rows += 1
            self._count_text(example["text"], self._answers)
        else:
            found.chat_rows += 1
            for message in example["messages"]:
                if message["role"] == "system":
                    found.with_system += 1
                    continue
                found.turns += 1
                is_answer = message["role"] == "assistant"
                self._count_text(message["content"], self._answers if is_answer else self._questions)
            first = next((m["content"] for m in example["messages"] if m["role"] == "user"), "")
            self._distinct.add(hash(first))
        if example["label"] and len(self._labels) < 65_536:
            self._labels[example["label"]] += 1

    def _count_text(self, text: str, lengths: Counter[int]) -> None:
        words = len(text.split())
        lengths[words] += 1
        self._statistics.words += words
        self._statistics.characters += len(text)

    def result(self) -> Statistics:
        """What was counted so far."""
        return self._statistics.model_copy(
            update={
                "distinct_questions": len(self._distinct),
                "questions": _weighted(self._questions),
                "answers": _weighted(self._answers),
                "labels": self._labels.most_common(50),
                "distinct_labels": len(self._labels),
            }
        )


def _weighted(lengths: Counter[int]) -> Histogram:
    """The histogram of counted lengths."""
    if not lengths:
        return Histogram(unit="words")
    total, seen = lengths.total(), 0
    high = low = min(lengths)
    for value in sorted(lengths):
        seen += lengths[value]
        high = value
        if seen >= 0.99 * total:
            break
    bins = min(BARS, high - low + 1)
    width = (high - low) / bins or 1.0
    bars = [0] * bins
    for value, number in lengths.items():
        bars[min(bins - 1, int((value - low) / width))] += number
    return Histogram(low=low, high=max(lengths), unit="words", bars=bars)
