"""Steps that leave rows out by what is in the row alone: missing sides, too short or too long."""

import re

import numpy as np
import polars as pl
from pydantic import Field

from app.contracts.base import Contract
from app.datasets.steps.contract import (
    ASSISTANT,
    MAIN,
    REJECTED,
    TEXT,
    TOOL,
    USER,
    Batch,
    Changes,
    RowRunner,
    Step,
    Words,
)


class MissingParams(Contract):
    """Rows whose question or answer is missing."""

    placeholders: list[str] = Field(
        default_factory=lambda: ["n/a", "na", "null", "none", "nan", "-", "--", "...", "?", "tbd"],
        max_length=50,
        title="Words that mean “nothing”",
    )


class LengthParams(Contract):
    """Answers or texts outside these lengths, in characters."""

    shortest: int = Field(1, ge=0, le=100_000, title="Shortest answer", description="characters")
    longest: int = Field(
        20_000, ge=1, le=10_000_000, title="Longest row", description="characters, question and answer"
    )


_INVISIBLE = re.compile(r"[\s\u200b-\u200f\u2060\ufeff\u00ad]+")
_UNSEEN = r"[\s\x1c-\x1f\u200b-\u200f\u2060\ufeff\u00ad]*"


def _missing(params: MissingParams) -> RowRunner:
    placeholders = {p.strip().casefold() for p in params.placeholders}
    # Only a text with few visible characters can be a placeholder.
    longest = max([len(p) for p in placeholders if len(p) <= 60], default=0)
    gate = rf"\A{_UNSEEN}(?:[^\s]{_UNSEEN}){{0,{longest}}}\z"

    def run(batch: Batch) -> Changes:
        is_nothing, is_blank = (np.zeros(len(batch.texts), np.bool_) for _ in range(2))
        for index in batch.matching(gate):
            shown = _INVISIBLE.sub(" ", batch.texts[int(index)]).strip()
            is_blank[index] = not shown
            is_nothing[index] = not shown or shown.casefold() in placeholders
        rows = len(batch)

        def number(mask: np.ndarray) -> np.ndarray:
            return np.bincount(batch.owners[mask], minlength=rows)

        is_main = batch.sides == MAIN
        is_answer = (batch.roles == ASSISTANT) & batch.is_learned & is_main
        is_asked = ((batch.roles == USER) | (batch.roles == TOOL)) & is_main
        answers = number(is_answer)
        wrong = number(is_answer & is_nothing) > 0
        for row in np.flatnonzero(wrong & (answers == 1)):
            # An answer that is its label says what it means, however it reads: only nothing at all is missing.
            answer = int(np.flatnonzero(is_answer & (batch.owners == row))[0])
            if batch.labels[int(row)] and batch.texts[answer] == batch.labels[int(row)]:
                wrong[row] = is_blank[answer]
        # A bad answer (KTO) is never learned by itself, and is there all the same.
        is_unanswered = (answers + number(batch.sides == REJECTED)) == 0
        is_out = is_unanswered | wrong | (number(is_asked & ~is_blank) == 0)
        is_out = np.where(batch.is_chat, is_out, number((batch.roles == TEXT) & is_nothing) > 0)
        return Changes(removed={"out.missing": np.flatnonzero(is_out)})

    return run


def _length(params: LengthParams) -> RowRunner:
    def run(batch: Batch) -> Changes:
        rows = len(batch)
        lengths = batch.texts.str.len_chars().cast(pl.Int64).to_numpy()
        total = np.bincount(batch.owners, weights=lengths, minlength=rows)
        answer = np.zeros(rows, np.int64)
        spoken = batch.of_role(ASSISTANT, TEXT)
        # The last one wins: later assignments replace earlier ones.
        answer[batch.owners[spoken]] = lengths[spoken]
        is_short = answer < params.shortest
        is_long = ~is_short & (total > params.longest)
        return Changes(removed={"out.short": np.flatnonzero(is_short), "out.long": np.flatnonzero(is_long)})

    return run


MISSING = Step(
    "missing", 1, "Rows without a question or an answer", MissingParams, _missing, 4,
    codes={"out.missing": "Question or answer missing"},
    words=Words(
        "1 row without a question or an answer", "%(n)s rows without a question or an answer",
        "There is nothing to learn from an empty question or answer.", "Leave them out",
    ),
)  # fmt: skip
LENGTH = Step(
    "length", 1, "Too short or too long", LengthParams, _length, 16,
    codes={"out.short": "Answer too short", "out.long": "Row too long"},
    words=Words(
        "1 row is too short or too long", "%(n)s rows are too short or too long",
        "Under or over the length you allow.", "Leave them out", "scale",
    ),
)  # fmt: skip
