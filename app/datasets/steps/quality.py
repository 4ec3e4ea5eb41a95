"""Heuristics of quality with a score from 0 to 100: how much of a text is words, how much of it repeats, how it ends.

The rules for repetition and symbols follow Gopher (Rae et al. 2021, table A1) and hold from 50 words on; a refusal, an
answer that is the question, and an answer that breaks off are looked for in every answer.
"""

import re
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from app.contracts.base import Contract
from app.datasets.distinct import distinct
from app.datasets.statistics import word_counts
from app.datasets.steps.contract import (
    ASSISTANT,
    MAIN,
    REJECTED,
    TEXT,
    USER,
    Batch,
    Changes,
    Indexes,
    RowRunner,
    Step,
    Words,
)
from app.datasets.steps.copies import mixed

_FENCE = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_SYMBOLS = re.compile(r"#|…|\.\.\.")
_LETTERS, _DIGITS = re.compile(r"[^\W_]+"), re.compile(r"[0-9]+")
_MARKS = re.compile(r"[^\w\x00-\u02ff\u0f85-\U0010ffff]")
_ITEM = re.compile(r"[-*•#>|\d]")
CUT_WORDS = 20
# Whether a byte of plain ASCII is a letter, or a blank as `str.split` sees it.
_ASCII = [chr(byte) for byte in range(128)]
_IS_LETTER = np.array([c.isalpha() for c in _ASCII], np.uint32)
_IS_BLANK = np.array([c.isspace() for c in _ASCII], np.uint32)
_ENDS = r"[\n\r\x0b\x0c\x1c-\x1e]"
REFUSAL = (
    r"(?i)\bas an? (?:ai|artificial intelligence|large language|language)\b(?: language)?(?: model| assistant)?"
    r"|\bi(?:'| a)m (?:just |only )?an? (?:ai|language model)\b"
    r"|\bi(?:'m| am) (?:sorry|afraid),? (?:but )?i (?:can(?:no|')t|am (?:not able|unable)|won't)"
    r" (?:assist|help|provide|fulfil|comply|answer|do that)"
    r"|\bi (?:can(?:no|')t|am unable to) (?:assist|help) with (?:that|this)|\bmy (?:training data|knowledge cut-?off)\b"
    r"|\bals (?:ki|künstliche intelligenz|sprachmodell)\b|\ben tant qu(?:e modèle de langage|'ia|'intelligence)"
    r"|\bcomo (?:una? )?(?:ia|inteligencia artificial|modelo de lenguaje|modelo de linguagem)\b"
)
# What each finding costs. A row with several loses each of them; it begins with 100 and never falls below 0.
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


def _repeats_a_pair(words: list[str], characters: int, most: float) -> bool:
    """Whether the most frequent pair of words, from three times on, covers more of the characters than `most`."""
    least = 0.499 * most * characters
    # One word of such a pair covers half of it: hardly any text has one, and words are counted sooner than pairs.
    if not any(times > 2 and times * len(word) > least for word, times in Counter(words).items()):
        return False
    pair, times = Counter(pairwise(words)).most_common(1)[0]
    return times > 2 and times * (len(pair[0]) + len(pair[1])) / characters > most


def findings(text: str, limits: QualityParams) -> list[str]:
    """Codes of a text of `least_words` and more. Fenced code is not looked at."""
    prose = _FENCE.sub(" ", text) if "```" in text or "~~~" in text else text
    words = prose.split()
    if len(words) < limits.least_words:
        return []
    codes = []
    characters = sum(map(len, words))
    # Every script's own digits count as letters; marks above and below letters (Indic scripts, Arabic) belong to them.
    letters = sum(map(len, _LETTERS.findall(prose))) - sum(map(len, _DIGITS.findall(prose)))
    marks = 0 if prose.isascii() else len(_MARKS.findall(prose))
    if letters + marks < limits.least_letters * characters:
        codes.append("q.letters")
    if len(_SYMBOLS.findall(prose)) > limits.most_symbols * len(words):
        codes.append("q.symbols")
    if _repeated_lines(prose) > limits.most_lines:
        codes.append("q.lines")
    if _repeats_a_pair(words, characters, limits.most_phrases):
        codes.append("q.phrases")
    return codes


def _findings(texts: pl.Series, words: Indexes, limits: QualityParams) -> dict[str, list[int]]:
    """Code to places of the `texts` (of `words` words each, enough of them) in which `findings` names it. What is
    plain ASCII without fences, nearly all of them, is counted byte by byte."""
    codes: dict[str, list[int]] = {}
    is_plain = ((texts.str.len_bytes() == texts.str.len_chars()) & ~texts.str.contains("```|~~~")).to_numpy()
    for place in np.flatnonzero(~is_plain).tolist():
        for code in findings(texts[place], limits):
            codes.setdefault(code, []).append(place)
    places = np.flatnonzero(is_plain)
    if not len(places):
        return codes
    plain, words = texts.gather(places), words[places]
    said, lengths = plain.to_list(), plain.str.len_bytes().to_numpy().astype(np.int64)
    read, starts = np.frombuffer("".join(said).encode("ascii"), np.uint8), np.cumsum(lengths) - lengths
    letters, blanks = (np.add.reduceat(table[read], starts).astype(np.int64) for table in (_IS_LETTER, _IS_BLANK))
    characters = lengths - blanks
    signs = plain.str.count_matches(r"#|\.\.\.").to_numpy()
    lined = plain.str.contains(rf"(?s){_ENDS}.*{_ENDS}").arg_true().to_list()
    found = {
        "q.letters": np.flatnonzero(letters < limits.least_letters * characters).tolist(),
        "q.symbols": np.flatnonzero(signs > limits.most_symbols * words).tolist(),
        "q.lines": [i for i in lined if _repeated_lines(said[i]) > limits.most_lines],
        "q.phrases": [
            i for i in _one_sided(read, starts, words, 0.499 * limits.most_phrases * characters)
            if _repeats_a_pair(said[i].split(), int(characters[i]), limits.most_phrases)
        ],
    }  # fmt: skip
    for code, some in found.items():
        codes.setdefault(code, []).extend(places[some].tolist())
    return codes


def _one_sided(
    read: npt.NDArray[np.uint8], starts: Indexes, words: Indexes, least: npt.NDArray[np.floating[Any]]
) -> list[int]:
    """Texts in which one word, from three times on, covers more characters than `least`, and a few more: words are told
    apart by a hash of their first eight letters and their length. Texts begin at `starts` and have `words` words."""
    is_word = _IS_BLANK[read] == 0
    begins, ends = is_word.copy(), is_word.copy()
    begins[1:] &= ~is_word[:-1]
    ends[:-1] &= ~is_word[1:]
    begins[starts], ends[starts[1:] - 1] = is_word[starts], is_word[starts[1:] - 1]
    first = np.flatnonzero(begins)
    sizes = np.flatnonzero(ends) - first + 1
    padded = np.concatenate([read, np.zeros(8, np.uint8)])
    heads = np.ndarray(len(read), "<u8", padded.data, strides=(1,))[first]
    is_short = sizes < 8
    heads[is_short] &= (np.uint64(1) << (8 * sizes[is_short]).astype(np.uint64)) - np.uint64(1)
    # In one number: the text, 24 bits of hash, and the length (those from 255 on as one, looked at in any case).
    capped = np.minimum(sizes, 255).astype(np.uint64)
    rows = np.repeat(np.arange(len(starts), dtype=np.uint64), words)
    keys = (rows << np.uint64(32)) | (mixed(heads) >> np.uint64(40) << np.uint64(8)) | capped
    keys.sort()
    runs = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
    times, distinct_words = np.diff(runs), keys[runs[:-1]]
    text, size = (distinct_words >> np.uint64(32)).astype(np.int64), distinct_words & np.uint64(255)
    is_much = (times > 2) & ((times * size.astype(np.int64) > least[text]) | (size == np.uint64(255)))
    return distinct(text[is_much]).tolist()


def breaks_off(text: str) -> bool:
    """Whether a longer text, which ends on a letter or a comma, ends in the middle of a sentence."""
    last = text.rstrip().rsplit("\n", 1)[-1].strip()
    # Headings, list items, verse and signatures end without a stop.
    return len(last.split()) >= 8 and not _ITEM.match(last) and "```" not in text


def is_echo(question: str, answer: str) -> bool:
    """Whether the answer is the question again, whatever case and signs."""
    asked, said = (re.sub(r"[\W_]+", " ", text).casefold().strip() for text in (question, answer))
    return len(said.split()) >= 3 and asked == said


def _quality(params: QualityParams) -> RowRunner:
    def run(batch: Batch) -> Changes:
        # A rejected answer is meant to be poor.
        spoken = batch.is_learned & np.isin(batch.roles, (ASSISTANT, TEXT)) & (batch.sides != REJECTED)
        # Rows whose answer is their label are names, not prose.
        spoken &= ~(batch.labels != "").to_numpy()[batch.owners]
        places = np.flatnonzero(spoken)
        texts = batch.texts.gather(places)
        words = word_counts(texts)
        is_long = words >= params.least_words
        found = _findings(texts.filter(pl.Series(is_long)), words[is_long], params)
        noted = {code: places[is_long][some] for code, some in found.items()}
        if params.is_refusal_marked:
            is_answer = batch.roles[places] == ASSISTANT
            answers = texts if is_answer.all() else texts.filter(pl.Series(is_answer))
            noted["q.refusal"] = places[is_answer][answers.str.contains(REFUSAL).to_numpy()]
        open_ended = np.flatnonzero((words >= CUT_WORDS) & texts.str.contains(r"[\p{L}\p{M},]\s*\z").to_numpy())
        ends = texts.gather(open_ended).to_list()
        noted["q.cut"] = places[[i for i, text in zip(open_ended.tolist(), ends, strict=True) if breaks_off(text)]]
        noted["q.echo"] = np.array(_echoes(batch, places), np.int64)
        codes = {code: batch.rows_of(noted[code]) for code in sorted(noted) if len(noted[code])}
        cost = np.zeros(len(batch), np.float32)
        for code, rows in codes.items():
            cost[rows] += COSTS[code]
        scores = np.maximum(np.float32(0), np.float32(100) - cost)
        return Changes(
            codes=dict(codes), removed={"out.quality": np.flatnonzero(scores < params.least_score)},
            marks={"quality": scores},
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
