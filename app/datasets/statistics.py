"""One pass over rows: counts, lengths and labels, small enough to keep with a version."""

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from app.contracts.base import Contract
from app.datasets.distinct import counted, distinct
from app.datasets.shapes import BARS, Histogram
from app.datasets.steps.batches import strings
from app.datasets.steps.contract import ASSISTANT, MAIN, ROLES, SYSTEM, TEXT, USER, Batch


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
    languages: list[tuple[str, int]] = Field(default_factory=list, description="where a step found them")
    roles: list[tuple[str, int]] = Field(default_factory=list)
    turns_per_row: Histogram = Field(default_factory=Histogram)
    quality: list[tuple[int, int]] = Field(default_factory=list, description="lower end of ten points, rows")
    tokens: Histogram = Field(default_factory=Histogram)


# Lengths above this are counted in bins of one sixteenth of a doubling.
EXACT_BELOW = 4096
LABELS_COUNTED = 65_536
_OTHER_SPACES = r"[\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"


def word_counts(texts: pl.Series) -> npt.NDArray[np.int64]:
    """How many words each text has, as `len(text.split())`."""
    array = strings(texts)
    offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
    if not len(array) or offsets[-1] == offsets[0]:
        return np.zeros(len(array), np.int64)
    values = np.frombuffer(array.buffers()[2], np.uint8, offsets[-1] - offsets[0], int(offsets[0]))
    # 9 to 13 and 28 to 32: below them the difference wraps to a large number.
    is_space = ((values - np.uint8(9)) < 5) | ((values - np.uint8(28)) < 5)
    begins = offsets[:-1] - offsets[0]
    # A word begins behind each space, unless another one follows, and with each text.
    is_start = ~is_space
    is_start[1:] &= is_space[:-1]
    firsts = begins[offsets[1:] > offsets[:-1]]
    is_start[firsts] = ~is_space[firsts]
    # Counting whole texts by where the words lie is several times cheaper than a sum over all bytes.
    counts = np.diff(np.flatnonzero(is_start).searchsorted(offsets - offsets[0])).astype(np.int64)
    others = np.flatnonzero((texts.str.len_bytes() != texts.str.len_chars()).to_numpy())
    some = texts.gather(others)
    for place in some.str.contains(_OTHER_SPACES).arg_true().to_list():
        counts[others[place]] = len(some[place].split())
    return counts


def binned(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Values up to 4,096 as they are, larger ones rounded to a sixteenth of a doubling."""
    large = values > EXACT_BELOW
    if not large.any():
        return values
    found = values.copy()
    found[large] = np.round(2 ** (np.round(np.log2(values[large]) * 16) / 16)).astype(np.int64)
    return found


class Counting:
    """Feed it batches, join the states of several, ask for the statistics. Memory: 8 bytes a row, and the counts."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()
        self._counts: dict[str, Counter[Any]] = {name: Counter() for name in _COUNTED}
        self._first_questions: list[npt.NDArray[np.uint64]] = []

    def add_batch(self, batch: Batch, marks: dict[str, npt.NDArray[Any]] | None = None) -> None:
        """Count the rows of a batch; `marks` are those of the trace (language, quality, tokens)."""
        is_main = batch.sides == MAIN
        words = word_counts(batch.texts)
        is_system, is_answer = batch.roles == SYSTEM, (batch.roles == ASSISTANT) | (batch.roles == TEXT)
        is_counted = is_main & ~is_system
        lengths = batch.texts.str.len_chars().to_numpy()
        self._sums.update(
            rows=len(batch), chat_rows=int(batch.is_chat.sum()), text_rows=int((~batch.is_chat).sum()),
            turns=int((is_counted & (batch.roles != TEXT)).sum()), with_system=int((is_main & is_system).sum()),
            words=int(words[is_counted].sum()), characters=int(lengths[is_counted].sum()),
        )  # fmt: skip
        self._count("answers", binned(words[is_counted & is_answer]))
        self._count("questions", binned(words[is_counted & ~is_answer]))
        self._count("roles", batch.roles[is_main])
        self._count("turns", np.bincount(batch.owners[is_counted], minlength=len(batch))[batch.is_chat])
        if len(self._counts["labels"]) < LABELS_COUNTED:
            self._counts["labels"].update(batch.labels.filter(batch.labels != "").to_list())
        first = np.zeros(len(batch), np.uint64)
        users = np.flatnonzero((batch.roles == USER) & is_main)
        # Written backwards, so that the first question of a row is the one that stays.
        first[batch.owners[users[::-1]]] = batch.texts.gather(users[::-1]).hash().to_numpy()
        self._first_questions.append(distinct(first[batch.is_chat]))
        for name, values in (marks or {}).items():
            if name == "language":
                self._counts["languages"].update(value for value in values.tolist() if value)
            elif name == "quality":
                self._count("quality", (values[~np.isnan(values)] // 10 * 10).astype(np.int64))
            elif name == "tokens":
                self._count("tokens", binned(values.astype(np.int64)))

    def _count(self, name: str, values: npt.NDArray[Any]) -> None:
        self._counts[name].update(counted(values))

    def state(self) -> dict[str, Any]:
        """All of it as plain values, for `join` in another process."""
        first = distinct(np.concatenate([np.zeros(0, np.uint64), *self._first_questions]))
        return {
            "sums": dict(self._sums), "first": first.tobytes().hex(),
            "counts": {name: list(counter.items()) for name, counter in self._counts.items()},
        }  # fmt: skip

    def join(self, state: dict[str, Any]) -> None:
        """Add what another one counted."""
        self._sums.update(state["sums"])
        self._first_questions.append(np.frombuffer(bytes.fromhex(state["first"]), np.uint64))
        for name, items in state["counts"].items():
            self._counts[name].update(dict(items))

    def result(self) -> Statistics:
        """What was counted so far."""
        first = distinct(np.concatenate([np.zeros(0, np.uint64), *self._first_questions]))
        labels, languages = self._counts["labels"], self._counts["languages"]
        return Statistics(
            **self._sums,
            distinct_questions=len(first),
            questions=_weighted(self._counts["questions"]),
            answers=_weighted(self._counts["answers"]),
            labels=sorted(labels.items(), key=lambda item: (-item[1], item[0]))[:50],
            distinct_labels=len(labels),
            languages=sorted(languages.items(), key=lambda item: (-item[1], item[0]))[:50],
            roles=[(ROLES[role], number) for role, number in sorted(self._counts["roles"].items())],
            turns_per_row=_weighted(self._counts["turns"], "turns"),
            quality=sorted(self._counts["quality"].items()),
            tokens=_weighted(self._counts["tokens"], "tokens"),
        )


_COUNTED = ("questions", "answers", "labels", "languages", "roles", "turns", "quality", "tokens")


def _weighted(lengths: Counter[int], unit: str = "words") -> Histogram:
    """The histogram of counted lengths."""
    if not lengths:
        return Histogram(unit=unit)
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
    return Histogram(low=low, high=max(lengths), unit=unit, bars=bars)
