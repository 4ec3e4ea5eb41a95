"""HTML: the main text of a page (trafilatura), or all of it in order (selectolax) where no main text is found."""

from collections.abc import Iterator

from selectolax.lexbor import LexborHTMLParser, LexborNode

from app.datasets.findings import Refused
from app.datasets.reading import markdown
from app.datasets.reading.blocks import Block, Headings, table_text

PAGE_LIMIT_BYTES = 16 * 1024 * 1024
LEAST_CHARACTERS = 80
_LEFT_OUT = ("script", "style", "noscript", "template", "svg", "nav", "form", "iframe", "object", "head")
_BLOCK_NAMES = "p,li,pre,blockquote,dt,dd,figcaption,td,th,caption,summary,address"
_BLOCKS = frozenset(_BLOCK_NAMES.split(","))
_HEADINGS = {f"h{n}": n for n in range(1, 7)}


def blocks_of_page(html: str) -> Iterator[Block]:
    """Blocks of the main text of a page with menus and adverts left out. Raises Refused over 16 MB."""
    if len(html) > PAGE_LIMIT_BYTES:
        raise Refused("This web page is over 16 MB. Save its text as TXT, then bring that.")
    import trafilatura

    main = ""
    try:
        main = trafilatura.extract(
            html, output_format="markdown", include_tables=True, include_comments=False, include_formatting=True
        ) or ""  # fmt: skip
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError):
        # Pages that its parser cannot take are read whole below.
        main = ""
    if len(main) >= LEAST_CHARACTERS:
        for number, block in enumerate(markdown.blocks(enumerate(main.split("\n"), 1)), 1):
            yield Block(f"block {number}", block.heading, block.text)
        return
    yield from blocks_of_markup(html)


def blocks_of_markup(html: str, place: str = "") -> Iterator[Block]:
    """Every block of a page in order, under its headings. `place` stands before the number of the block."""
    tree = LexborHTMLParser(html)
    tree.strip_tags(list(_LEFT_OUT))
    headings, number = Headings(), 0
    for node, text in _texts(tree.body):
        if level := _HEADINGS.get(node.tag or ""):
            headings.enter(level, text)
        elif text.strip():
            number += 1
            yield Block(place or f"block {number}", headings.path, text)


def _texts(root: LexborNode | None) -> Iterator[tuple[LexborNode, str]]:
    """(element, its text) for headings, tables and blocks; loose text between them goes with its parent.

    Walks with a stack of its own: pages may be nested deeper than Python's.
    """
    if root is None:
        return
    loose: list[str] = []
    node: LexborNode | None = root.child
    path: list[LexborNode] = []
    while node is not None or path:
        if node is None:
            parent = path.pop()
            if (parent.tag or "") in ("div", "section", "article", "main", "body") and "".join(loose).strip():
                yield parent, " ".join("".join(loose).split())
                loose = []
            node = parent.next
            continue
        tag = node.tag or ""
        if tag == "-text":
            loose.append(node.text(deep=False) or "")
        elif tag == "br":
            loose.append("\n")
        elif tag == "table" or tag in _BLOCKS or tag in _HEADINGS:
            if "".join(loose).strip():
                yield root, " ".join("".join(loose).split())
            loose = []
            yield node, _table(node) if tag == "table" else _inner(node, tag)
        elif node.child is not None:
            path.append(node)
            node = node.child
            continue
        node = node.next
    if "".join(loose).strip():
        yield root, " ".join("".join(loose).split())


def _inner(node: LexborNode, tag: str) -> str:
    text = node.text(deep=True) or ""
    if tag == "pre":
        return f"```\n{text.strip()}\n```"
    flat = " ".join(text.split())
    return f"- {flat}" if tag == "li" and flat else flat


def _table(node: LexborNode) -> str:
    rows = [[cell.text(deep=True) or "" for cell in row.css("td, th")[:100]] for row in node.css("tr")[:5000]]
    return table_text(rows)
