"""Profanity and insults by word lists that we keep ourselves, one plain file a language in `words/`: whole words only.

A list knows no meaning: it misses what is unkind without a bad word and hits quotations. So rows are marked, and a
person decides.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import ahocorasick_rs
import numpy as np
import polars as pl
from pydantic import Field

from app.contracts.base import Contract
from app.datasets.steps.columns import column_of
from app.datasets.steps.contract import Batch, Changes, RowRunner, Span, Step, Words
from app.datasets.steps.language import guesses

FOLDER = Path(__file__).with_name("words")
LANGUAGES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese",
    "nl": "Dutch", "pl": "Polish", "ru": "Russian", "sv": "Swedish", "tr": "Turkish",
}  # fmt: skip
SEVERITIES = {1: "mild", 2: "strong", 3: "insults a group"}
Language = Literal["en", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "sv", "tr"]


class ProfanityParams(Contract):
    """Bad words."""

    languages: list[Language] = Field(
        default_factory=lambda: list(get_args(Language)),
        title="Languages",
        description="en, de, fr, es, it, pt, nl, pl, ru, sv, tr",
    )
    allowed: list[str] = Field(default_factory=list, max_length=500, title="Words that are fine here")
    least_severity: int = Field(
        2, ge=1, le=3, title="From which strength on", description="1 mild, 2 strong, 3 insults a group"
    )


class Hit(NamedTuple):
    """A word of a list: where it stands, and how strong it is (1 to 3)."""

    start: int
    end: int
    severity: int


@lru_cache(maxsize=8)
def words_of(language: str) -> dict[str, int]:
    """Word in lower case to severity."""
    lines = (FOLDER / f"{language}.txt").read_text("utf-8").splitlines()
    pairs = (line.split("\t") for line in lines if line and not line.startswith("#"))
    return {word: int(severity) for word, severity in pairs}


class Lexicon:
    """Finds the words of some languages, but for those that are allowed.

    What is rude in one language is the hour in another: a word counts where its language is the text's, or the text is
    too short to tell. English words count everywhere.
    """

    def __init__(self, languages: Iterable[str], allowed: Iterable[str] = (), least_severity: int = 1) -> None:
        stay = {word.strip().lower() for word in allowed}
        self._words: dict[str, dict[str, int]] = {}
        for language in sorted(set(languages)):
            for word, severity in words_of(language).items():
                if severity >= least_severity and word not in stay:
                    self._words.setdefault(word, {})[language] = severity
        self._names = list(self._words)
        self._search = ahocorasick_rs.AhoCorasick(
            self._names or ["\x00"], matchkind=ahocorasick_rs.MatchKind.LeftmostLongest
        )

    def hits(self, texts: Sequence[str] | pl.Series) -> dict[int, list[Hit]]:
        """Place of a text to the words found in it; texts without any are not in it."""
        found: dict[int, list[Hit]] = {}
        if not self._names:
            return found
        for place, text in enumerate(column_of(texts).str.to_lowercase().to_list()):
            matches = self._search.find_matches_as_indexes(text)
            whole = [m for m in matches if not _is_inside(text, m[1] - 1) and not _is_inside(text, m[2])]
            if whole and (hits := self._meant(texts[place], whole)):
                # A letter that grows in lower case moves what follows: then the places are looked up again.
                found[place] = hits if len(text) == len(texts[place]) else _placed(texts[place], hits, text)
        return found

    def _meant(self, text: str, matches: list[tuple[int, int, int]]) -> list[Hit]:
        lists = [self._words[self._names[index]] for index, _start, _end in matches]
        is_english = all("en" in known for known in lists)
        language = "en" if is_english else guesses([text])[0].language
        hits = []
        for known, (_index, start, end) in zip(lists, matches, strict=True):
            fitting = [s for name, s in known.items() if name in (language, "en") or not language]
            if fitting:
                hits.append(Hit(start, end, max(fitting)))
        return hits


def _is_inside(text: str, place: int) -> bool:
    return 0 <= place < len(text) and (text[place].isalnum() or text[place] == "_")


def _placed(text: str, hits: list[Hit], lowered: str) -> list[Hit]:
    places = [place for place, character in enumerate(text) for _ in character.lower()]
    return [Hit(places[h.start], places[h.end - 1] + 1, h.severity) for h in hits if len(places) == len(lowered)]


def _profanity(params: ProfanityParams) -> RowRunner:
    lexicon = Lexicon(params.languages, params.allowed, params.least_severity)

    def run(batch: Batch) -> Changes:
        found = lexicon.hits(batch.texts)
        severity: dict[int, int] = {}
        for place, hits in found.items():
            row = int(batch.owners[place])
            severity[row] = max(severity.get(row, 0), *(hit.severity for hit in hits))
        rows = np.array(sorted(severity), np.int64)
        codes = {
            f"q.profane.{level}": np.array(sorted(r for r, s in severity.items() if s == level), np.int64)
            for level in SEVERITIES
        }
        spans = [Span(place, "profane", hit.start, hit.end) for place, hits in found.items() for hit in hits]
        return Changes(codes={c: r for c, r in codes.items() if len(r)}, removed={"out.profane": rows}, spans=spans)

    return run


PROFANITY = Step(
    "profanity", 1, "Bad language", ProfanityParams, _profanity, 256,
    codes={
        "q.profane.1": "Mild bad language", "q.profane.2": "Strong bad language",
        "q.profane.3": "Insults a group of people",
        "out.profane": "Bad language: left out",
    },
    words=Words(
        "1 row contains bad language", "%(n)s rows contain bad language",
        "Found by word lists, which know no context: quotations count, and unkind words without a bad one do not.",
        "Leave them out", "flag",
    ),
    default="mark",
)  # fmt: skip
