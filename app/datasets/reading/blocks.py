"""Documents as rows: one block of text a row, with the document, its place and the headings above it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from app.datasets.findings import Record

BLOCK_LIMIT_CHARACTERS = 200_000
DEEPEST_HEADING = 6


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, list, table or page. `heading` is the path of headings, joined by “ › ”."""

    place: str
    heading: str
    text: str


@dataclass
class Headings:
    """The headings that are open at a place of a document."""

    _open: list[tuple[int, str]] = field(default_factory=list)

    def enter(self, level: int, text: str) -> None:
        """A heading of `level` (1 is the highest) begins."""
        while self._open and self._open[-1][0] >= level:
            self._open.pop()
        self._open.append((min(level, DEEPEST_HEADING), " ".join(text.split())[:200]))

    @property
    def path(self) -> str:
        """All open headings, outermost first."""
        return " › ".join(text for _level, text in self._open if text)


def records(document: str, blocks: Iterator[Block], start: int = 1) -> Iterator[Record]:
    """One record a block with the columns document, place, heading and text; blocks without text are left out."""
    number = start
    for block in blocks:
        text = block.text.strip()
        for first in range(0, len(text), BLOCK_LIMIT_CHARACTERS):
            values = {
                "document": document,
                "place": block.place,
                "heading": block.heading,
                "text": text[first : first + BLOCK_LIMIT_CHARACTERS],
            }
            yield Record(number, values, block.place)
            number += 1


def table_text(rows: list[list[str]]) -> str:
    """A table as Markdown; empty for a table without cells."""
    rows = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    rows = [row for row in rows if any(row)]
    if not rows:
        return ""
    width = max(len(row) for row in rows)
    lines = ["| " + " | ".join(row + [""] * (width - len(row))) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * width, *lines[1:]])
