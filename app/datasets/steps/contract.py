"""What a cleaning step is given and gives back. Texts lie flat in a batch, with the row and the role of each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from pydantic import Field

from app.contracts.base import Contract

Example = dict[str, Any]
Indexes = npt.NDArray[np.int64]
Mode = Literal["on", "mark", "ask", "off"]
ROLES = ("system", "user", "assistant", "tool", "text")
SYSTEM, USER, ASSISTANT, TOOL, TEXT = range(5)
# The list of turns that a text stands in: the conversation, or the two answers that a preference compares.
SIDES = ("messages", "chosen", "rejected")
MAIN, CHOSEN, REJECTED = range(3)
BATCH_ROWS = 20_000
# What a mark may be called, and what it is: the columns of the trace.
MARKS: dict[str, type[Any]] = {"language": str, "tokens": np.int32, "quality": np.float32, "score": np.float32}


@dataclass(slots=True)
class Batch:
    """At most 20,000 rows. `owners` (ascending) is the row of each text, `roles` an index into ROLES.

    A chat row has a text for each message (`is_learned`: the model learns it), then for each turn of its chosen and
    rejected answers (`sides`, an index into SIDES); a text row has one text, of the role TEXT. `marks` holds what
    earlier steps marked, one value a row. `rids` number the input rows of the whole set. `extras`: what turns carry
    beside their text, a row for each text, or None when no turn carries anything.
    """

    rids: Indexes
    is_chat: npt.NDArray[np.bool_]
    texts: pl.Series
    owners: npt.NDArray[np.int32]
    roles: npt.NDArray[np.uint8]
    sides: npt.NDArray[np.uint8]
    is_learned: npt.NDArray[np.bool_]
    labels: pl.Series
    metas: pl.Series
    source_rows: Indexes
    file_id: str = ""
    extras: pa.Table | None = None
    marks: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rids)

    def matching(self, pattern: str, texts: pl.Series | None = None) -> Indexes:
        """Indexes of the texts in which `pattern` (syntax of Rust's regex: no look-around) is found."""
        found = (self.texts if texts is None else texts).str.contains(pattern)
        return np.flatnonzero(found.to_numpy()).astype(np.int64)

    def of_role(self, *roles: int) -> Indexes:
        """Indexes of the conversation's own texts of these roles."""
        return np.flatnonzero(np.isin(self.roles, roles) & (self.sides == MAIN)).astype(np.int64)

    def rows_of(self, texts: Sequence[int] | Indexes) -> Indexes:
        """The rows of these texts, each once, ascending."""
        return np.unique(self.owners[np.asarray(texts, np.int64)]).astype(np.int64)

    def starts(self) -> Indexes:
        """Index of each row's first text; one more at the end."""
        found = np.zeros(len(self) + 1, np.int64)
        np.cumsum(np.bincount(self.owners, minlength=len(self)), out=found[1:])
        return found


class Span(NamedTuple):
    """A place in text number `text` of the batch, in characters. Never holds what stood there."""

    text: int
    kind: str
    start: int
    end: int


@dataclass(slots=True)
class Changes:
    """What a step wants, all sparse. Indexes of `texts` count texts, all others count rows, of the batch.

    `codes`: reason to the rows it was found in (a row that changes needs one). `removed`: reason to the rows that go.
    `marks`: one value for every row of the batch (see MARKS). `of`: row that goes to the rid that stays in its place.
    `dropped`: texts that go while others of their row stay. `cuts`: row of plain text to the places (characters) at
    which it becomes several rows; that is done last, when the rows that stay are written.
    """

    texts: tuple[Sequence[int] | Indexes, Sequence[str]] = ((), ())
    labels: tuple[Sequence[int] | Indexes, Sequence[str]] = ((), ())
    metas: tuple[Sequence[int] | Indexes, Sequence[str]] = ((), ())
    codes: dict[str, Sequence[int] | Indexes] = field(default_factory=dict)
    removed: dict[str, Sequence[int] | Indexes] = field(default_factory=dict)
    marks: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    dropped: Sequence[int] | Indexes = ()
    cuts: dict[int, list[int]] = field(default_factory=dict)


class Store(Protocol):
    """What `look` gave for all rows that reached a set step, in order. Row numbers here count those rows."""

    rids: Indexes
    is_alive: npt.NDArray[np.bool_]
    """False for rows that an earlier set step took out: leave them out of every decision."""
    scratch: Path
    """A folder of this step's own; files below `scratch / "keep"` stay with the working set."""

    def load(self, name: str) -> npt.NDArray[Any]:
        """One array over all rows (the shards' arrays joined), memory-mapped where it is one shard."""
        ...

    def spared(self, code: str) -> Indexes:
        """Rids that a person told the step to leave alone for this reason."""
        ...

    def parts(self, name: str) -> Iterator[npt.NDArray[Any]]:
        """The array of each shard, memory-mapped, in order. Its first dimension may differ from the rows."""
        ...


class Removal(NamedTuple):
    """Rows that go (ascending), why, the rid that stays instead of each (-1: none), and how alike (0 to 1)."""

    code: str
    rows: Indexes
    of: Indexes | None = None
    score: npt.NDArray[np.float32] | None = None


@dataclass(slots=True)
class Verdict:
    """What a set step decided. A row may be in one removal only. `marked`: code to rows that stay."""

    removals: list[Removal] = field(default_factory=list)
    marked: dict[str, Indexes] = field(default_factory=dict)


RowRunner = Callable[[Batch], Changes]


class SetRunner(Protocol):
    """A step over all rows."""

    def look(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """Per-row state, small: at most some 40 bytes a row unless it lies on disk only."""
        ...

    def decide(self, store: Store) -> Verdict:
        """The verdict on all rows. Must not depend on how they were cut into shards."""
        ...


class Words(NamedTuple):
    """A step on a card: what was found in one row, in many (`%(n)s`), why it matters, the button and its picture."""

    one: str
    many: str
    why: str
    verb: str
    icon: str = "filter"


class Step(NamedTuple):
    """A step of the catalogue. `bit` is its place in the changed mask; `default` its mode in the standard preset.

    `codes`: reason code to words. `is_set`: `start` gives a SetRunner. `is_sampled`: a sample can tell what it does.
    `has_mode` False: what happens to the rows is among its own settings.
    """

    name: str
    version: int
    title: str
    params: type[Contract]
    start: Callable[[Any], Any]
    bit: int
    codes: dict[str, str]
    words: Words
    default: Mode = "on"
    is_set: bool = False
    is_sampled: bool = True
    has_mode: bool = True


class ChosenStep(Contract):
    """A step of a plan, with its parameters. The version says which rules it was written for.

    Mode "mark" finds and keeps the codes, and leaves every row as it is; "off" is not even tried.
    """

    name: str = Field(max_length=40)
    version: int = 1
    mode: Literal["on", "mark", "off"] = "on"
    params: dict[str, Any] = Field(default_factory=dict)
