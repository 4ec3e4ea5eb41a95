"""EPUB: the chapters of a book in reading order, as blocks under their headings."""

import posixpath
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from selectolax.lexbor import LexborHTMLParser

from app.datasets.findings import Refused
from app.datasets.reading.blocks import Block
from app.datasets.reading.context import Context
from app.datasets.reading.packages import member_bytes, open_package
from app.datasets.reading.web_pages import PAGE_LIMIT_BYTES, blocks_of_markup

CHAPTER_LIMIT = 2000
_ROOT = re.compile(rb"""full-path\s*=\s*["']([^"']+)["']""")
DAMAGED = "This EPUB has no list of chapters. Open it in your reader and save it again."


def blocks(path: Path, context: Context) -> Iterator[Block]:
    """Blocks of every chapter; the place is the number of the chapter. Raises Refused."""
    with open_package(path) as archive:
        names = set(archive.namelist())
        if "META-INF/encryption.xml" in names and b"EncryptedData" in _part(archive, "META-INF/encryption.xml"):
            raise Refused("This book is protected against copying (DRM). Bring a copy without it.", "file.password")
        chapters = [name for name in _spine(archive, names) if name in names]
        if not chapters:
            raise Refused(DAMAGED)
        for number, name in enumerate(chapters[:CHAPTER_LIMIT], 1):
            markup = _part(archive, name).decode("utf-8", "replace")
            yield from blocks_of_markup(markup, f"chapter {number}")
            context.done_bytes = context.total_bytes * number // len(chapters)


def _part(archive: zipfile.ZipFile, name: str) -> bytes:
    return member_bytes(archive, name, PAGE_LIMIT_BYTES)


def _spine(archive: zipfile.ZipFile, names: set[str]) -> list[str]:
    """Member names in reading order. The package file is read as markup: no entities, no damage that stops it."""
    if "META-INF/container.xml" not in names:
        raise Refused(DAMAGED)
    root = _ROOT.search(_part(archive, "META-INF/container.xml"))
    if root is None:
        raise Refused(DAMAGED)
    package = root.group(1).decode("utf-8", "replace")
    if package not in names:
        raise Refused(DAMAGED)
    tree = LexborHTMLParser(_part(archive, package).decode("utf-8", "replace"))
    items = {}
    for item in tree.css("item"):
        attributes = item.attributes
        if (attributes.get("media-type") or "") in ("application/xhtml+xml", "text/html"):
            items[attributes.get("id")] = attributes.get("href") or ""
    folder = posixpath.dirname(package)
    order = [items.get(entry.attributes.get("idref"), "") for entry in tree.css("itemref")]
    return [posixpath.normpath(posixpath.join(folder, unquote(href))) for href in order if href]
