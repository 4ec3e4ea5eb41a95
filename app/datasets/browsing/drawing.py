"""The HTML of the rows table, made cheaply: a page of rows is one join, heads and filters are drawn once for each set.

A template would take several operations for each of hundreds of cells; nothing else on the page costs as much.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from html import escape
from typing import Any

from markupsafe import Markup

from app.core.numbers import number
from app.core.templates import env, render_text
from app.core.templates import gettext as _
from app.datasets.browsing.table import Head, Table, TableRow, heads_of, word_of
from app.datasets.edits import DELETED, EXCLUDED

KEPT_IN_MEMORY = 128
CHOICES_IN_FILTER = 300


@dataclass(frozen=True)
class Asked:
    """What heads and filters depend on; `table` without its rows, whatever page it is."""

    index: str
    query: str
    chosen: tuple[str, ...]
    base_url: str
    is_chat: bool
    is_frozen: bool
    table: Table = field(compare=False)


@dataclass(frozen=True)
class Fixed:
    """What is the same on every page of a table: its heads, and the HTML of heads, search and filters."""

    heads: list[Head]
    head_html: Markup
    tools_html: Markup


def fixed_of(table: Table) -> Fixed:
    """Heads and filters, from memory where they were drawn before."""
    bare = replace(table, rows=[], state=None)
    query = table.question.url()
    asked = Asked(table.index, query, table.chosen, table.base_url, table.is_chat, table.is_frozen, bare)
    # While the index is being made nothing is settled, and a changed template is to be seen at once.
    return _drawn(asked) if table.index and not env.auto_reload else _drawn.__wrapped__(asked)


@lru_cache(maxsize=KEPT_IN_MEMORY)
def _drawn(asked: Asked) -> Fixed:
    table = asked.table
    heads = heads_of(table)
    head_html = render_text("datasets/rows/_heads.html", heads=heads)
    tools_html = render_text("datasets/rows/_tools.html", table=table, q=table.question, **_choices(table))
    return Fixed(heads, Markup(head_html), Markup(tools_html))  # noqa: S704 — both come from escaping templates


def _choices(table: Table) -> dict[str, Any]:
    """The filters' values in words, and the columns that can be shown."""
    meta = table.meta
    if meta is None:
        return {"choices": {}, "optional": []}
    lists = {"split": meta.splits, "label": meta.labels, "language": meta.languages, "source": meta.sources,
             "code": meta.marks}  # fmt: skip
    choices = {
        name: [(c.value, f"{word_of(name, c)} ({c.count:,})") for c in found[:CHOICES_IN_FILTER]]
        for name, found in lists.items()
        if len(found) > 1 or (name == "code" and found)
    }
    is_there = {
        "label": meta.label_count > 0, "split": bool(meta.splits), "language": bool(meta.languages), "words": True,
        "turns": meta.chat_rows > 0, "source": bool(meta.sources), "score": meta.has_score,
        "marks": bool(meta.marks),
    }  # fmt: skip
    return {"choices": choices, "optional": [name for name, is_known in is_there.items() if is_known]}


def rows_html(table: Table, heads: list[Head], *, can_tick: bool) -> Markup:
    """The rows of the page as `<tr>` elements. Every text of a row goes through `html.escape`."""
    query = table.question.url()
    suffix = escape(f"?{query}") if query else ""
    first = f'<td class="n rows-first" data-label="{escape(_("Row"))}">'
    tick, named = escape(_("Tick row")), []
    for head in heads:
        kind = ' class="n"' if head.is_number else ""
        named.append((head.name, f'<td data-label="{escape(head.label)}"{kind} data-name="{escape(head.name)}">'))
    found: list[str] = []
    for row in table.rows:
        state, tags = _edited(row) if row.edit else ("", "")
        ticked = (
            f'<label class="rows-tick"><input type="checkbox" name="key" value="{row.key}" form="rows-bulk">'
            f'<span class="visually-hidden">{tick} {row.number}</span></label>'
            if can_tick
            else ""
        )
        mark = f' data-state="{state}"' if state else ""
        found.append(
            f'<tr aria-rowindex="{row.number + 1}"{mark}>{first}{ticked}'
            f'<a class="rows-link" href="{escape(row.url)}{suffix}">{number(row.number)}</a></td>'
        )
        cells = row.cells
        for name, opening in named:
            found.append(f"{opening}{tags}{escape(cells.get(name) or '')}</td>")
            tags = ""
        found.append("</tr>\n")
    return Markup("".join(found))  # noqa: S704 — numbers, our own words, and texts that were escaped above


def _edited(row: TableRow) -> tuple[str, str]:
    """(the row's state, its tags as HTML)."""
    assert row.edit is not None
    flags = row.edit.flags
    state = "deleted" if flags & DELETED else "excluded" if flags & EXCLUDED else "edited"
    words = {"deleted": ("bad", _("Deleted")), "excluded": ("warn", _("Kept out"))}
    tags = [f'<span class="rows-tag">{escape(tag)}</span>' for tag in row.edit.tags]
    if state in words:
        tone, word = words[state]
        tags.insert(0, f'<span class="rows-tag" data-tone="{tone}">{escape(word)}</span>')
    return state, "".join(tags)
