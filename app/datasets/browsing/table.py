"""A page of the rows table: heads with their bars, rows with their cells, what was asked and how far the answer is."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from app.core.languages import LANGUAGES
from app.core.numbers import number
from app.core.templates import gettext as _
from app.datasets.browsing import background, columns, index, scanning
from app.datasets.browsing.index import Choice, Lengths, Meta
from app.datasets.browsing.questions import OPTIONAL, Question
from app.datasets.browsing.scanning import State
from app.datasets.browsing.sets import RowSet, read
from app.datasets.clean_shown import code_words
from app.datasets.cleaning import STEPS
from app.datasets.edits import RowEdit

PER_PAGE = 100
BRIEF = 20
CHOICES_SHOWN = 12
SPLIT_WORDS = {"train": "Training", "validation": "Validation", "test": "Test"}
STATE_WORDS = {"edited": "Changed by hand", "deleted": "Deleted", "excluded": "Kept out", "untouched": "Not changed"}


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a head: its share of the tallest, what it stands for, and the address that filters by it."""

    share: float
    label: str
    url: str
    is_current: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """A column's head. `sort` is the address that orders by it."""

    name: str
    label: str
    kind: str = ""
    bars: list[Bar] = field(default_factory=list)
    note: str = ""
    sort: str = ""
    sorted: str = ""
    is_number: bool = False


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row: `number` counts from 1 in the whole set; `cells` by name of the head."""

    number: int
    key: int
    url: str
    cells: dict[str, str]
    edit: RowEdit | None = None


@dataclass(frozen=True, slots=True)
class Chip:
    """A filter in force and the address without it."""

    label: str
    url: str


@dataclass(frozen=True)
class Table:
    """A page of rows. `total` are those that fit, `rows_in_set` all; `state` says how far a scan is, if one goes on.

    `index` names the finished index. `is_brief`: only the first rows, on a page about something else.
    """

    rows: list[TableRow] = field(default_factory=list)
    total: int = 0
    rows_in_set: int = 0
    page: int = 1
    question: Question = field(default_factory=Question)
    chosen: tuple[str, ...] = ()
    meta: Meta | None = None
    state: State | None = None
    indexed: float = 1.0
    chips: list[Chip] = field(default_factory=list)
    base_url: str = ""
    is_pending: bool = False
    is_chat: bool = False
    is_frozen: bool = False
    is_brief: bool = False
    index: str = ""

    @property
    def is_working(self) -> bool:
        """Whether the page should look again soon."""
        is_unread = self.meta is None and self.rows_in_set > 0
        return is_unread or (self.state is not None and not self.state.is_done)

    def link(self, **changes: Any) -> str:
        """The address of this table with other filters, on its first page."""
        query = self.question.url(**changes)
        cols = "&".join(f"col={name}" for name in self.chosen)
        asked = "&".join(part for part in (query, cols) if part)
        return f"{self.base_url}?{asked}" if asked else self.base_url


def numbers_on(question: Question, page: int, answer: Path | None, total: int) -> Sequence[int]:
    """The numbers (from 0) of the rows on a page."""
    offset = (page - 1) * PER_PAGE
    if answer is not None:
        return scanning.numbers_of(answer, offset, PER_PAGE)
    if question.sort == "-row":
        return range(total - 1 - offset, max(-1, total - 1 - offset - PER_PAGE), -1)
    return range(min(offset, total), min(offset + PER_PAGE, total))


def chosen_columns(asked: Sequence[str], meta: Meta | None, is_frozen: bool) -> tuple[str, ...]:
    """The optional columns to show: those asked for, else what tells rows apart."""
    known = tuple(name for name in OPTIONAL if name in asked)
    if known or "none" in asked or meta is None:
        return known
    found = ["label"] if meta.label_count > 1 else []
    found += ["split"] if is_frozen else []
    found += ["language"] if len(meta.languages) > 1 else []
    found += ["source"] if len(meta.sources) > 1 else []
    return tuple(found)


def cells_of(rows: RowSet, numbers: Sequence[int], meta: Meta | None, chosen: Sequence[str]) -> list[dict[str, str]]:
    """The cells of rows, from the index; from the rows themselves while it is being made."""
    if meta is None:
        return [_example_cells(example) for example in read(rows, numbers, ("kind", "messages", "text", "label"))]
    folder = index.folder_of(rows)
    found: dict[str, list[str]] = {
        name: [one_line(text) for text in columns.cells_at(folder, name, numbers)] for name in ("first", "second")
    }
    named = {"label": meta.labels, "source": meta.sources, "split": meta.splits, "language": meta.languages}
    for name in chosen:
        values = columns.values_at(folder, name, numbers)
        if name in named:
            words = {choice.number: word_of(name, choice) for choice in named[name]}
            found[name] = [words.get(value, "") for value in values]
        elif name == "marks":
            found[name] = [", ".join(_mark_words(m) for m in meta.marks if value >> m.number & 1) for value in values]
        elif name == "score":
            found[name] = ["" if value != value else f"{value:.0f}" for value in values]
        else:
            found[name] = [number(value) for value in values]
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def _example_cells(example: dict[str, Any]) -> dict[str, str]:
    if example["kind"] == "text":
        return {"first": one_line(example["text"]), "second": ""}
    turns = example["messages"] or []
    first = next((m["content"] for m in turns if m["role"] == "user"), "")
    second = next((m["content"] for m in reversed(turns) if m["role"] == "assistant"), "")
    return {"first": one_line(first), "second": one_line(second), "label": example.get("label") or ""}


def edited_cells(cells: dict[str, str], edit: RowEdit) -> dict[str, str]:
    """The cells as the edit leaves them."""
    found = {**cells}
    if edit.example is not None:
        found |= {k: v for k, v in _example_cells(edit.example).items() if k != "label"}
    if edit.label is not None:
        found["label"] = edit.label
    return found


def one_line(text: str) -> str:
    """At most 120 characters in one line, with line breaks shown."""
    limit = columns.CELL_CHARACTERS
    return " ↵ ".join(text[:limit].splitlines()) + ("…" if len(text) > limit else "")


def word_of(name: str, choice: Choice) -> str:
    """A value of a filter in words."""
    if name == "split":
        return _(SPLIT_WORDS.get(choice.value, choice.value))
    if name == "language":
        return _(LANGUAGES.get(choice.value, choice.value))
    if name == "code":
        return _mark_words(choice)
    return choice.label


def _mark_words(choice: Choice) -> str:
    step = choice.value.removeprefix("changed:")
    if step != choice.value:
        return _("Changed: %(step)s", step=_(STEPS[step].title)) if step in STEPS else step
    return _(code_words(choice.value))


def heads_of(table: Table) -> list[Head]:
    """The heads, with bars where the index is there."""
    meta, is_chat = table.meta, table.is_chat
    heads = [Head("first", _("Question") if is_chat else _("Text"), _("Text"))]
    if is_chat:
        heads.append(Head("second", _("Answer"), _("Text")))
    if meta is not None:
        heads = [_length_head(table, head, getattr(meta, head.name), head.name) for head in heads]
    labels = {
        "label": _("Label"), "split": _("Split"), "language": _("Language"), "words": _("Length"), "turns": _("Turns"),
        "source": _("File"), "score": _("Score"), "marks": _("Marks"),
    }  # fmt: skip
    for name in table.chosen:
        head = Head(name, labels[name], is_number=name in ("words", "turns", "score"))
        if meta is not None:
            head = _filled_head(table, head, meta)
        heads.append(head)
    return heads


def _filled_head(table: Table, head: Head, meta: Meta) -> Head:
    lists = {"label": meta.labels, "split": meta.splits, "language": meta.languages, "source": meta.sources}
    if head.name in lists:
        return _choice_head(table, head, lists[head.name], meta.label_count if head.name == "label" else 0)
    if head.name == "words":
        return _length_head(table, head, meta.words, "words", "length")
    if head.name == "score":
        return _ordered(table, head, "score")
    return head


def _ordered(table: Table, head: Head, by: str) -> Head:
    now = table.question.sort
    following = {by: f"-{by}", f"-{by}": ""}.get(now, by)
    state = {by: "ascending", f"-{by}": "descending"}.get(now, "")
    return Head(
        head.name, head.label, head.kind, head.bars, head.note, table.link(sort=following), state, head.is_number
    )


def _length_head(table: Table, head: Head, lengths: Lengths, name: str, sort: str = "") -> Head:
    low_name, high_name = ("least", "most") if name == "words" else (f"{name}_least", f"{name}_most")
    top, bars = max(lengths.counts, default=0) or 1, []
    for i, (edge, count) in enumerate(zip(lengths.edges, lengths.counts, strict=True)):
        end = lengths.edges[i + 1] - 1 if i + 1 < len(lengths.edges) else None
        is_now = (getattr(table.question, low_name), getattr(table.question, high_name)) == (edge, end)
        span = (
            number(edge) if end == edge else f"{number(edge)}–{number(end)}" if end is not None else f"{number(edge)}+"
        )
        url = table.link(**({low_name: None, high_name: None} if is_now else {low_name: edge, high_name: end}))
        bars.append(Bar(count / top, _("%(span)s words: %(n)s rows", span=span, n=number(count)), url, is_now))
    note = f"{number(lengths.low)}–{number(lengths.high)}" if lengths.low != lengths.high else number(lengths.low)
    made = Head(head.name, head.label, head.kind, bars, _("%(span)s words", span=note), "", "", head.is_number)
    return _ordered(table, made, sort) if sort else made


def _choice_head(table: Table, head: Head, choices: list[Choice], count: int) -> Head:
    top = choices[0].count if choices else 1
    bars = []
    for choice in choices[:CHOICES_SHOWN]:
        is_now = getattr(table.question, head.name) == choice.value
        label = f"{word_of(head.name, choice)}: {number(choice.count)}"
        bars.append(Bar(choice.count / top, label, table.link(**{head.name: None if is_now else choice.value}), is_now))
    count = count or len(choices)
    note = (
        word_of(head.name, choices[0]) if count == 1 else _("%(n)s different", n=number(count)) if count else _("none")
    )
    return Head(head.name, head.label, head.kind, bars, note, "", "", head.is_number)


def chips_of(table: Table) -> list[Chip]:
    """The filters in force, each with the address without it."""
    question, meta, found = table.question, table.meta or Meta(), []
    if question.q:
        found.append(Chip(f"“{question.q}”", table.link(q=None)))
    lists = {"split": meta.splits, "label": meta.labels, "source": meta.sources, "language": meta.languages,
             "code": meta.marks}  # fmt: skip
    for name, choices in lists.items():
        if value := getattr(question, name):
            choice = next((c for c in choices if c.value == value), Choice(value=value, label=value, number=0, count=0))
            found.append(Chip(word_of(name, choice), table.link(**{name: None})))
    spans = (("least", "most", _("Row")), ("first_least", "first_most", _("Question")),
             ("second_least", "second_most", _("Answer")))  # fmt: skip
    for low_name, high_name, word in spans:
        low, high = getattr(question, low_name), getattr(question, high_name)
        if low is not None or high is not None:
            span = f"{low or 0}–{high}" if high is not None else _("from %(n)s", n=number(low))
            label = _("%(what)s: %(span)s words", what=word, span=span)
            found.append(Chip(label, table.link(**{low_name: None, high_name: None})))
    if question.tag:
        found.append(Chip(_("Tag “%(tag)s”", tag=question.tag), table.link(tag=None)))
    if question.state:
        found.append(Chip(_(STATE_WORDS[question.state]), table.link(state=None)))
    return found


def table_of(
    rows: RowSet, question: Question, page: int, asked_columns: Sequence[str], base_url: str, *,
    stamp: str = "", edits: Path | None = None, is_brief: bool = False,
) -> Table:  # fmt: skip
    """A page without the edits of its rows."""
    total = rows.rows
    if not total:
        return Table(question=question, base_url=base_url, meta=Meta())
    meta = background.ensure_index(rows)
    answer: Path | None = None
    state: State | None = None
    found = total
    if not question.is_plain and question.parts() != {"sort": "-row"}:
        answer, state = background.ensure_answer(rows, question, stamp, edits)
        found = state.found
    numbers = list(numbers_on(question, page, answer, total))
    if not numbers and state is not None and not state.is_done and page == 1:
        numbers = scanning.first_hits(rows, question)
        found = max(found, len(numbers))
    numbers = numbers[:BRIEF] if is_brief else numbers
    chosen = chosen_columns(asked_columns, meta, rows.is_frozen)
    table = Table(
        total=found, rows_in_set=total, page=page, question=question, chosen=chosen, meta=meta, state=state,
        indexed=1.0 if meta else background.index_progress(rows), base_url=base_url, is_frozen=rows.is_frozen,
        is_brief=is_brief, index=index.name_of(rows) if meta else "",
    )  # fmt: skip
    cells = cells_of(rows, numbers, meta, chosen)
    is_chat = meta.chat_rows > 0 if meta else any(cell.get("second") for cell in cells)
    keys = columns.values_at(index.folder_of(rows), "key", numbers) if meta else [0] * len(numbers)
    shown = [
        TableRow(at + 1, key, f"{base_url}/{at + 1}", cell)
        for at, key, cell in zip(numbers, keys, cells, strict=True)
    ]  # fmt: skip
    return replace(table, rows=shown, is_chat=is_chat, chips=chips_of(table))
