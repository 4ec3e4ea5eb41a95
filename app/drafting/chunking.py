"""Documents cut by their structure: at headings, then paragraphs, then sentences, with some overlap between pieces."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from app.datasets.turns import text_of

# What counts as a token before a model is chosen: a word, a sign, a character of scripts without spaces.
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]|\w+|[^\w\s]")
_SENTENCE = re.compile(r"(?<=[.!?…。！？])[\"”’»)]*\s+|(?<=[。！？])")


@dataclass(frozen=True, slots=True)
class Section:
    """A block of text of a document, with the headings above it."""

    document: str
    place: str
    heading: str
    text: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document; `tokens` counts words and signs."""

    document: str
    place: str
    heading: str
    text: str
    tokens: int


class Piece(NamedTuple):
    """A paragraph or a part of one; `paragraph` is its number under the heading."""

    text: str
    place: str
    paragraph: int


def sections(rows: Iterable[dict[str, Any]], column: str, filename: str) -> Iterator[Section]:
    """The rows of a file as sections; rows of plain text belong to one document named after the file."""
    for row in rows:
        text = text_of(row.get(column)).strip()
        if text:
            names = (text_of(row.get(name)).strip() for name in ("document", "place", "heading"))
            document, place, heading = names
            yield Section(document or filename, place, heading, text)


def count_tokens(text: str) -> int:
    """Words and signs: near what tokenizers give for English, and never far below."""
    return len(_TOKEN.findall(text))


def chunks(found: Iterable[Section], size: int = 512, overlap: int = 64) -> Iterator[Chunk]:
    """Pieces of at most `size` tokens that never cross a heading; neighbours share whole sentences of up to `overlap`.

    A single sentence over `size` is cut between words.
    """
    for (document, heading), group in groupby(found, key=lambda s: (s.document, s.heading)):
        parts = list(group)
        paragraphs = [(s.place, p) for s in parts for p in re.split(r"\n\s*\n", s.text) if p.strip()]
        pieces = [Piece(t, place, n) for n, (place, p) in enumerate(paragraphs) for t in _pieces(p.strip(), size)]
        waiting: list[Piece] = []
        is_fresh = False
        for piece in pieces:
            if waiting and _size(waiting) + count_tokens(piece.text) > size:
                if is_fresh:
                    yield _chunk(document, heading, waiting)
                waiting = _tail(waiting, min(overlap, size - count_tokens(piece.text)))
            waiting.append(piece)
            is_fresh = True
        if waiting and is_fresh:
            yield _chunk(document, heading, waiting)


def _pieces(paragraph: str, size: int) -> Iterator[str]:
    """A paragraph, or where it is over `size` its sentences, or runs of words of a sentence over `size`."""
    if count_tokens(paragraph) <= size:
        yield paragraph
        return
    for sentence in _SENTENCE.split(paragraph):
        if not sentence.strip():
            continue
        ends = [match.end() for match in _TOKEN.finditer(sentence)]
        start = 0
        for end in [*ends[size - 1 : -1 : size], len(sentence)]:
            yield sentence[start:end].strip()
            start = end


def _size(pieces: list[Piece]) -> int:
    return sum(count_tokens(piece.text) for piece in pieces)


def _tail(pieces: list[Piece], overlap: int) -> list[Piece]:
    """The last sentences of the pieces, at most `overlap` tokens."""
    kept: list[Piece] = []
    sentences = [p._replace(text=s.strip()) for p in pieces for s in _SENTENCE.split(p.text) if s.strip()]
    for sentence in reversed(sentences):
        if _size(kept) + count_tokens(sentence.text) > overlap:
            break
        kept.insert(0, sentence)
    return kept


def _chunk(document: str, heading: str, pieces: list[Piece]) -> Chunk:
    paragraphs = (" ".join(p.text for p in group) for _n, group in groupby(pieces, key=lambda p: p.paragraph))
    text = "\n\n".join(paragraphs)
    return Chunk(document, pieces[0].place, heading, text, count_tokens(text))
