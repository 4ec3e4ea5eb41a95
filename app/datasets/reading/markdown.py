"""Markdown: paragraphs, lists, tables and fenced code as blocks under their headings."""

import re
from collections.abc import Iterable, Iterator

from app.datasets.reading.blocks import Block, Headings

_ATX = re.compile(r" {0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
_SETEXT = re.compile(r" {0,3}(=+|-+)\s*$")
_FENCE = re.compile(r" {0,3}(```+|~~~+)")


def blocks(lines: Iterable[tuple[int, str]]) -> Iterator[Block]:
    """Blocks of numbered lines. A fence is kept whole; front matter between two lines of --- is passed over."""
    headings, parts, start, fence = Headings(), list[str](), 1, ""
    is_front = False
    for number, line in lines:
        if number == 1 and line.strip() == "---":
            is_front = True
            continue
        if is_front:
            is_front = line.strip() not in ("---", "...")
            continue
        if fence:
            parts.append(line)
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
            continue
        if opened := _FENCE.match(line):
            fence = opened.group(1)
            start = start if parts else number
            parts.append(line)
            continue
        heading = _ATX.match(line)
        under = _SETEXT.match(line) if len(parts) == 1 and parts[0].strip() and not parts[0].startswith("|") else None
        if heading or under or not line.strip():
            if under:
                headings.enter(1 if under.group(1)[0] == "=" else 2, parts[0])
                parts = []
            if parts:
                yield Block(f"line {start}", headings.path, "\n".join(parts))
                parts = []
            if heading:
                headings.enter(len(heading.group(1)), heading.group(2))
            continue
        start = start if parts else number
        parts.append(line)
    if parts:
        yield Block(f"line {start}", headings.path, "\n".join(parts))
