"""DOCX: paragraphs, lists and tables as blocks under their headings, in the order of the document."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.datasets.findings import Refused
from app.datasets.reading.blocks import Block, Headings, table_text
from app.datasets.reading.packages import open_package, refuse_entities

TITLE_LEVEL = 0
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
DAMAGED = "This Word file is damaged and cannot be opened. Open it in your office program and save it again."


def blocks(path: Path) -> Iterator[Block]:
    """Blocks of a DOCX file; the place is the number of the paragraph. Raises Refused."""
    with open_package(path) as archive:
        refuse_entities(archive)
    import docx

    try:
        document = docx.Document(str(path))
        levels = _heading_levels(document)
        body = list(document.element.body)
    except Refused:
        raise
    except MemoryError:
        raise
    except Exception as error:  # python-docx and lxml raise anything at all on damaged parts
        raise Refused(DAMAGED) from error
    yield from _walk(body, levels)


def _heading_levels(document: Any) -> dict[str, int]:
    """Style id to heading level."""
    found = {}
    for style in document.styles:
        name = (style.name or "").lower()
        if name == "title":
            found[style.style_id] = TITLE_LEVEL
        elif name.startswith("heading ") and name[8:].isdigit():
            found[style.style_id] = int(name[8:])
    return found


def _walk(body: list[Any], levels: dict[str, int]) -> Iterator[Block]:
    headings, items, start = Headings(), list[str](), 0
    for number, element in enumerate(body, 1):
        is_item = False
        text = ""
        if element.tag == f"{_W}p":
            text = _text(element)
            style = element.find(f"{_W}pPr/{_W}pStyle")
            name = style.get(f"{_W}val", "") if style is not None else ""
            if (level := levels.get(name)) is not None:
                if items:
                    yield Block(f"paragraph {start}", headings.path, "\n".join(items))
                    items = []
                if text.strip():
                    headings.enter(level, text)
                continue
            is_item = element.find(f"{_W}pPr/{_W}numPr") is not None or name.lower().startswith("list")
        elif element.tag == f"{_W}tbl":
            text = _table(element)
        if is_item and text.strip():
            start = start if items else number
            items.append(f"- {text.strip()}")
            continue
        if items and text.strip():
            yield Block(f"paragraph {start}", headings.path, "\n".join(items))
            items = []
        if text.strip():
            yield Block(f"paragraph {number}", headings.path, text)
    if items:
        yield Block(f"paragraph {start}", headings.path, "\n".join(items))


def _text(element: Any) -> str:
    """The visible text of a paragraph: deleted text of tracked changes is left out."""
    parts = []
    for node in element.iter(f"{_W}t", f"{_W}tab", f"{_W}br", f"{_W}cr"):
        parts.append(node.text or "" if node.tag == f"{_W}t" else "\t" if node.tag == f"{_W}tab" else "\n")
    return "".join(parts)


def _table(element: Any) -> str:
    rows = [[_text(cell) for cell in row.findall(f"{_W}tc")] for row in element.findall(f"{_W}tr")]
    return table_text(rows)
