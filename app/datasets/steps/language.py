"""Which language a text is in: pycld2 for nearly all rows, py3langid where it is unsure or known to mix two up.

Measured on the Universal Declaration of Human Rights in 58 languages, see `benchmarks/data/language.py`.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pycld2
from pydantic import Field

from app.contracts.base import Contract
from app.datasets.steps.columns import column_of
from app.datasets.steps.contract import Batch, Changes, Indexes, RowRunner, Step, Words

LEAST_LETTERS = 20
# A word of these scripts is one or two characters long.
LEAST_DENSE_LETTERS = 7
READ_CHARACTERS = 4000
Numbers = npt.NDArray[np.int64]
_DENSE = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_SIGNS = r"[{}();=<>\[\]_|\\]"
_ASCII = "".join(map(chr, range(128)))
# 16 bits hold the sum over the 4,000 characters that are read.
_IS_LETTER = np.array([c.isalpha() for c in _ASCII], np.uint16)
_IS_SIGN = np.array([bool(re.match(_SIGNS, c)) for c in _ASCII], np.uint16)
_FENCE = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_ODD = re.compile(r"[^\w\s.,;:!?'’\"()-]")
_SAME = {"iw": "he", "in": "id", "jw": "jv", "mo": "ro", "nn": "no", "nb": "no", "zh-Hant": "zh", "sr-ME": "sr"}
# Pairs that share most of their words, and pycld2's word for "cannot say".
_MIXED_UP = {"ms", "sr", "no", "un"}


class LanguageParams(Contract):
    """The language of each row, from what is learned in it."""

    allowed: list[str] = Field(
        default_factory=list, max_length=60, title="Languages that stay",
        description="two letters each, such as en, de; empty: all of them",
    )  # fmt: skip
    confidence: float = Field(0.5, ge=0, le=1, title="Least confidence to leave a row out", description="0 to 1")


class Guess(NamedTuple):
    """`language` is an ISO 639-1 code, or empty: too short, or code. `confidence` 0 to 1. `letters` in the text."""

    language: str
    confidence: float
    letters: int


@lru_cache(maxsize=1)
def _second() -> Any:
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=1024)
def _code(name: str) -> str:
    return _SAME.get(name, name.split("-")[0])


def _guess(text: str) -> tuple[str, float]:
    try:
        is_sure, _bytes, found = pycld2.detect(text, isPlainText=True, bestEffort=True)
    except pycld2.error:
        # It refuses control characters and code points that stand for nothing.
        text = _ODD.sub(" ", text).encode("utf-8", "ignore").decode()
        try:
            is_sure, _bytes, found = pycld2.detect(text, isPlainText=True, bestEffort=True)
        except pycld2.error:
            is_sure, found = False, ((None, "un", 0, 0.0),)
    name = _code(found[0][1])
    if is_sure and name not in _MIXED_UP:
        return name, found[0][2] / 100
    name, confidence = _second().classify(text)
    return _code(name), float(confidence)


def _signs_of(column: pl.Series) -> tuple[Numbers, Numbers, Numbers]:
    """Letters, letters of dense scripts and signs of code in each text; plain ASCII is counted byte by byte."""
    is_plain = column.str.len_bytes() == column.str.len_chars()
    letters, dense, signs = (np.zeros(len(column), np.int64) for _ in range(3))
    plain = is_plain & (column.str.len_bytes() > 0)
    if plain.any():
        texts = column.filter(plain)
        ends = texts.str.len_bytes().to_numpy().cumsum(dtype=np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        read = np.frombuffer("".join(texts.to_list()).encode("ascii"), np.uint8)
        where = plain.to_numpy()
        letters[where] = np.add.reduceat(_IS_LETTER[read], starts, dtype=np.uint16)
        signs[where] = np.add.reduceat(_IS_SIGN[read], starts, dtype=np.uint16)
    others = column.filter(~is_plain)
    where = ~is_plain.to_numpy()
    letters[where] = others.str.count_matches(r"[\p{L}\p{M}]").to_numpy()
    dense[where] = others.str.count_matches(_DENSE).to_numpy()
    signs[where] = others.str.count_matches(_SIGNS).to_numpy()
    return letters, dense, signs


def guesses(texts: Sequence[str]) -> list[Guess]:
    """The language of each text. Fenced code is not read; a text that is mostly code has none."""
    read = [_FENCE.sub(" ", text) if "```" in text or "~~~" in text else text for text in texts]
    column = column_of([text[:READ_CHARACTERS] for text in read])
    counted = zip(*(numbers.tolist() for numbers in _signs_of(column)), strict=True)
    found = []
    for text, (letters, dense, signs) in zip(column.to_list(), counted, strict=True):
        is_long = letters >= LEAST_LETTERS or dense >= LEAST_DENSE_LETTERS
        if not is_long or signs > 0.12 * letters:
            found.append(Guess("", 0.0, letters))
        else:
            found.append(Guess(*_guess(text), letters))
    return found


def learned_text(batch: Batch) -> list[str]:
    """What is learned in each row, turns joined by line breaks; the whole row where nothing is."""
    return _joined(batch, batch.is_learned & batch.texts.str.contains(r"\S").to_numpy())


def _joined(batch: Batch, is_read: np.ndarray) -> list[str]:
    number = np.bincount(batch.owners[is_read], minlength=len(batch))
    is_read = is_read | (number == 0)[batch.owners]
    if np.array_equal(batch.owners[is_read], np.arange(len(batch))):
        return batch.texts.filter(pl.Series(is_read)).to_list()
    frame = pl.DataFrame({"row": batch.owners[is_read], "text": batch.texts.filter(pl.Series(is_read))})
    joined = frame.group_by("row", maintain_order=True).agg(pl.col("text").str.join("\n"))
    found = [""] * len(batch)
    for row, text in joined.iter_rows():
        found[row] = text
    return found


def _language(params: LanguageParams) -> RowRunner:
    allowed = {_code(word.strip().lower()) for word in params.allowed if word.strip()}

    def run(batch: Batch) -> Changes:
        found = guesses(learned_text(batch))
        languages = np.array([guess.language for guess in found], dtype=object)
        is_out = np.array(
            [
                bool(allowed) and g.language not in allowed and g.language != "" and g.letters >= LEAST_LETTERS
                and g.confidence >= params.confidence
                for g in found
            ],
            np.bool_,
        )  # fmt: skip
        out: Indexes = np.flatnonzero(is_out).astype(np.int64)
        return Changes(marks={"language": languages}, removed={"out.lang": out})

    return run


LANGUAGE = Step(
    "language", 1, "Languages", LanguageParams, _language, 64,
    codes={"out.lang": "In another language"},
    words=Words(
        "1 row is in another language", "%(n)s rows are in another language",
        "Rows in languages that you do not want. Code, and rows of less than 20 letters, always stay.",
        "Leave them out", "book-open",
    ),
    default="mark",
)  # fmt: skip
