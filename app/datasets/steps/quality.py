"""Heuristics of quality with a score from 0 to 100: how much of a text is words, how much of it repeats, how it ends.

The rules for repetition and symbols follow Gopher (Rae et al. 2021, table A1) and hold from 50 words on; a refusal, an
answer that is the question, and an answer that breaks off are looked for in every answer.
"""

import re
from collections import Counter
from itertools import pairwise

import numpy as np
import polars as pl
from pydantic import Field

from app.contracts.base import Contract
from app.datasets.steps.contract import ASSISTANT, MAIN, REJECTED, TEXT, USER, Batch, Changes, RowRunner, Step, Words

_WORD = re.compile(r"\S+")
_FENCE = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_SYMBOLS = re.compile(r"#|…|\.\.\.")
_ENDS = re.compile(r"[.!?…。！？؟।॥。」』)\]}>\"'”’»*_`:~|\-=;%€$\d]\s*\Z")
REFUSAL = (
    r"(?i)\bas an? (?:ai|artificial intelligence|large language|language)\b(?: language)?(?: model| assistant)?"
    r"|\bi(?:'| a)m (?:just |only )?an? (?:ai|language model)\b"
    r"|\bi(?:'m| am) (?:sorry|afraid),? (?:but )?i (?:can(?:no|')t|am (?:not able|unable)|won't)"
    r" (?:assist|help|provide|fulfil|comply|answer|do that)"
    r"|\bi (?:can(?:no|')t|am unable to) (?:assist|help) with (?:that|this)|\bmy (?:training data|knowledge cut-?off)\b"
    r"|\bals (?:ki|künstliche intelligenz|sprachmodell)\b|\ben tant qu(?:e modèle de langage|'ia|'intelligence)"
    r"|\bcomo (?:una? )?(?:ia|inteligencia artificial|modelo de lenguaje|modelo de linguagem)\b"
)
# What each finding costs. A text with several loses each of them.
COSTS = {
    "q.refusal": 50, "q.echo": 60, "q.letters": 35, "q.lines": 35, "q.phrases": 30, "q.symbols": 25, "q.cut": 15,
}  # fmt: skip
CODES = {
    "q.refusal": "Sounds like a refusal or a machine speaking of itself",
    "q.echo": "The answer repeats the question",
    "q.letters": "Few letters, much else",
    "q.lines": "Many lines are the same",
    "q.phrases": "The same phrase again and again",
    "q.symbols": "Many signs such as # and …",
    "q.cut": "Breaks off in the middle of a sentence",
}


class QualityParams(Contract):
    """Signs of a poor row. Shares go from 0 to 1."""

    least_score: int = Field(40, ge=0, le=100, title="Least score to stay", description="0 to 100")
    least_words: int = Field(50, ge=10, le=1000, title="Look at shares from this length on", description="words")
    least_letters: float = Field(0.4, ge=0, le=1, title="Least share of letters")
    most_symbols: float = Field(0.3, ge=0, le=1, title="Most signs for each word", description="# and …")
    most_lines: float = Field(0.3, ge=0, le=1, title="Most lines that repeat")
    most_phrases: float = Field(0.2, ge=0, le=1, title="Most text in one repeated phrase")
    is_refusal_marked: bool = Field(True, title="Look for refusals", description="“as an AI …”")


def _repeated_lines(text: str) -> float:
    """Share of lines that stand there more than once, without the blank ones."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < 3:
        return 0.0
    return 1 - len(set(lines)) / len(lines)


def _top_pair(words: list[str], characters: int) -> float:
    """Share of the characters that the most frequent pair of words covers."""
    pair, times = Counter(pairwise(words)).most_common(1)[0]
    return times * (len(pair[0]) + len(pair[1])) / characters if times > 2 else 0.0


_LETTERS = re.compile(r"[A-Za-z]+")


def findings(text: str, limits: QualityParams) -> list[str]:
    """Codes of a text of `least_words` and more. Fenced code is not looked at."""
    prose = _FENCE.sub(" ", text) if "```" in text or "~~~" in text else text
    words = _WORD.findall(prose)
    if len(words) < limits.least_words:
        return []
    codes = []
    characters = sum(map(len, words))
    if prose.isascii():
        letters = sum(map(len, _LETTERS.findall(prose)))
    else:
        letters = sum(c.isalpha() or (c.isalnum() and not c.isascii()) for c in prose)
    # Marks above and below letters (Indic scripts, Arabic) belong to them.
    marks = 0 if prose.isascii() else sum(0x0300 <= ord(c) <= 0x0F84 and not c.isalnum() for c in prose)
    if letters + marks < limits.least_letters * characters:
        codes.append("q.letters")
    if len(_SYMBOLS.findall(prose)) > limits.most_symbols * len(words):
        codes.append("q.symbols")
    if _repeated_lines(prose) > limits.most_lines:
        codes.append("q.lines")
    if _top_pair(words, characters) > limits.most_phrases:
        codes.append("q.phrases")
    return codes


def breaks_off(text: str, least_words: int = 20) -> bool:
    """Whether a longer text ends on a letter or a comma: no full stop, no sign, no list, no code."""
    if _ENDS.search(text) or len(_WORD.findall(text)) < least_words:
        return False
    last = text.rstrip().rsplit("\n", 1)[-1].strip()
    # Headings, list items, verse and signatures end without a stop.
    return len(last.split()) >= 8 and not re.match(r"[-*•#>|\d]", last) and "```" not in text


def is_echo(question: str, answer: str) -> bool:
    """Whether the answer is the question again, whatever case and signs."""
    asked, said = (re.sub(r"[\W_]+", " ", text).casefold().strip() for text in (question, answer))
    return len(said.split()) >= 3 and asked == said


def score(codes: list[str]) -> float:
    """100 without findings; each one takes its cost, never below 0."""
    return float(max(0, 100 - sum(COSTS[code] for code in codes)))


def _quality(params: QualityParams) -> RowRunner:
    gate = rf"(?:\S+\s+){{{params.least_words - 1}}}\S"

    def run(batch: Batch) -> Changes:
        found: dict[int, list[str]] = {}

        def note(code: str, indexes: np.ndarray) -> None:
            for row in np.unique(batch.owners[indexes]).tolist():
                found.setdefault(row, []).append(code)

        # A rejected answer is meant to be poor.
        spoken = batch.is_learned & np.isin(batch.roles, (ASSISTANT, TEXT)) & (batch.sides != REJECTED)
        # Rows whose answer is their label are names, not prose.
        is_label = np.zeros(len(batch), np.bool_)
        labelled = np.flatnonzero((batch.labels != "").to_numpy())
        is_label[labelled] = True
        spoken &= ~is_label[batch.owners]
        places = np.flatnonzero(spoken)
        texts = batch.texts.gather(places)
        long = places[texts.str.contains(gate).to_numpy()]
        codes: dict[str, list[int]] = {}
        for index in long.tolist():
            for code in findings(batch.texts[index], params):
                codes.setdefault(code, []).append(index)
        for code, indexes in codes.items():
            note(code, np.array(indexes))
        if params.is_refusal_marked:
            answers = places[batch.roles[places] == ASSISTANT]
            note("q.refusal", answers[batch.texts.gather(answers).str.contains(REFUSAL).to_numpy()])
        open_ended = places[texts.str.contains(r"[\p{L}\p{M},]\s*\z").to_numpy()]
        cut = [i for i in open_ended.tolist() if breaks_off(batch.texts[i])]
        note("q.cut", np.array(cut, np.int64))
        note("q.echo", np.array(_echoes(batch, places), np.int64))
        scores = np.full(len(batch), 100, np.float32)
        by_code: dict[str, list[int]] = {}
        for row, names in found.items():
            scores[row] = score(names)
            for name in names:
                by_code.setdefault(name, []).append(row)
        return Changes(
            codes={name: sorted(rows) for name, rows in sorted(by_code.items())},
            removed={"out.quality": np.flatnonzero(scores < params.least_score)}, marks={"quality": scores},
        )  # fmt: skip

    return run


def _echoes(batch: Batch, places: np.ndarray) -> list[int]:
    """Answers that are the turn before them."""
    answers = places[(batch.roles[places] == ASSISTANT) & (batch.sides[places] == MAIN) & (places > 0)]
    answers = answers[(batch.roles[answers - 1] == USER) & (batch.owners[answers - 1] == batch.owners[answers])]
    lengths = batch.texts.str.len_bytes().cast(pl.Int64).to_numpy()
    near = answers[abs(lengths[answers] - lengths[answers - 1]) <= 0.3 * lengths[answers] + 8]
    return [i for i in near.tolist() if is_echo(batch.texts[i - 1], batch.texts[i])]


QUALITY = Step(
    "quality", 1, "Poor quality", QualityParams, _quality, 128,
    codes=CODES | {"out.quality": "Score under your limit"},
    words=Words(
        "1 row shows signs of poor quality", "%(n)s rows show signs of poor quality",
        "Refusals, answers that break off or repeat themselves. These are rules of thumb: look first.",
        "Leave the poorest out", "gauge",
    ),
    default="mark",
)  # fmt: skip
