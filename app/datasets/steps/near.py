"""The step that removes near copies: look leaves shingles and signatures on disk, decide finds edges, covers them."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from app.contracts.base import Contract
from app.datasets.near.edges import Edges, edges_of
from app.datasets.near.shingles import keys_and_counts
from app.datasets.near.spill import Batch as Part
from app.datasets.near.spill import Spill, crew, look, workers_for
from app.datasets.near.stars import MIDDLE, cover, passing
from app.datasets.near.texts import joined
from app.datasets.steps.batches import strings
from app.datasets.steps.contract import ASSISTANT, CHOSEN, MAIN, SYSTEM, Batch, Removal, Step, Store, Verdict, Words

THRESHOLDS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
EDGES_FILE = "near-edges.parquet"


class NearParams(Contract):
    """Rows that are almost the same: one of them stays."""

    threshold: float = Field(
        0.8, ge=0.7, le=0.95, title="How alike", description="shared runs of three words, from 0.7 to 0.95"
    )
    kept: Literal["first", "longest", "best"] = Field("first", title="Which copy stays")


def example_texts(batch: Batch) -> pa.Array:
    """What is compared of every row: all that is said but the system prompt."""
    return joined(strings(batch.texts), batch.owners, batch.roles != SYSTEM, len(batch))


def answer_texts(batch: Batch) -> pa.Array:
    """The last answer of every row, or the chosen one."""
    places = np.arange(len(batch.owners))
    is_answer = (batch.roles == ASSISTANT) & (batch.sides == MAIN)
    last = np.full(len(batch), -1)
    last[batch.owners[is_answer]] = places[is_answer]
    is_chosen = batch.sides == CHOSEN
    last[batch.owners[is_chosen]] = -1
    return joined(strings(batch.texts), batch.owners, (places == last[batch.owners]) | is_chosen, len(batch))


class _Near:
    """The set runner. On disk: 256 bytes of signatures and 8 for each shingle of a row; in memory about 40 a row."""

    def __init__(self, params: NearParams) -> None:
        self._params = params

    def look(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        answers, tokens = keys_and_counts(answer_texts(batch))
        quality = batch.marks.get("quality", np.zeros(len(batch), np.float32))
        return {
            **look(example_texts(batch)),
            "answers": answers,
            "tokens": tokens,
            "labels": batch.labels.fill_null("").hash(1).to_numpy(),
            "quality": np.nan_to_num(quality).astype(np.float32),
        }

    def decide(self, store: Store) -> Verdict:
        rows = len(store.rids)
        if rows < 2:
            return Verdict()
        with spilled(store) as spill, crew(workers_for(rows)) as work:
            edges = edges_of(spill, work)
        is_allowed = self._allowed(edges, store)
        gone = cover(edges, passing(edges, self._params.threshold, is_allowed), self._priority(edges, store))
        _keep(store, edges, is_allowed)
        return Verdict([Removal("out.near", gone.out, store.rids[gone.twin], gone.j)])

    def _allowed(self, edges: Edges, store: Store) -> npt.NDArray[np.bool_]:
        """Rows of different labels both stay; so do rows whose short answers differ in a word. They are no copies of
        each other but a contradiction, and may be the point of the set."""
        labels, answers, tokens = store.load("labels"), store.load("answers"), store.load("tokens")
        is_short = np.minimum(tokens[edges.a], tokens[edges.b]) < MIDDLE
        is_other = answers[edges.a] != answers[edges.b]
        return np.asarray((labels[edges.a] == labels[edges.b]) & ~(is_short & is_other))

    def _priority(self, edges: Edges, store: Store) -> npt.NDArray[np.float64] | None:
        if self._params.kept == "first":
            return None
        return np.asarray(edges.sizes if self._params.kept == "longest" else store.load("quality"), np.float64)


@contextmanager
def spilled(store: Store) -> Iterator[Spill]:
    """The spill of what the shards left: their own files where they are files, else copies in a folder of its own."""
    with tempfile.TemporaryDirectory(dir=store.scratch if store.scratch != Path() else None) as folder:
        parts, start = [], 0
        for number, arrays in enumerate(zip(*(store.parts(n) for n in ("bands", "sizes", "values")), strict=True)):
            names = [_file(array, Path(folder, f"{number:05d}-{i}.npy")) for i, array in enumerate(arrays)]
            parts.append(Part(start, len(arrays[1]), *names))
            start += len(arrays[1])
        np.save(Path(folder, "alive.npy"), np.flatnonzero(store.is_alive))
        yield Spill(folder, tuple(parts), has_dead=not store.is_alive.all())


def _file(array: npt.NDArray[Any], otherwise: Path) -> str:
    name = getattr(array, "filename", None)
    if name is not None and str(name).endswith(".npy"):
        return str(name)
    np.save(otherwise, array)
    return str(otherwise)


def _keep(store: Store, edges: Edges, is_allowed: npt.NDArray[np.bool_]) -> None:
    """Leave the edges with the working set: another threshold is then a matter of reading them."""
    if store.scratch == Path():
        return
    folder = store.scratch / "keep"
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "a": store.rids[edges.a], "b": store.rids[edges.b], "j": edges.j, "is_allowed": is_allowed,
            "size_a": edges.sizes[edges.a], "size_b": edges.sizes[edges.b],
        }
    )  # fmt: skip
    metadata = {"large_buckets": ",".join(map(str, edges.large_buckets[:100]))}
    pq.write_table(table.replace_schema_metadata(metadata), folder / EDGES_FILE, compression="zstd")


def counts(path: Path) -> tuple[dict[float, int], list[int]]:
    """(threshold to the rows that would go at it, the first copy staying; rows of crowded buckets), from kept edges."""
    table = pq.read_table(path)
    columns = {name: table.column(name).to_numpy() for name in table.schema.names}
    rows, places = np.unique(np.concatenate([columns["a"], columns["b"]]), return_inverse=True)
    sizes = np.zeros(len(rows), np.uint32)
    half = len(columns["a"])
    sizes[places[:half]], sizes[places[half:]] = columns["size_a"], columns["size_b"]
    edges = Edges(places[:half], places[half:], columns["j"], sizes, [])
    crowded = (table.schema.metadata or {}).get(b"large_buckets", b"").decode()
    found = {t: len(cover(edges, passing(edges, t, columns["is_allowed"])).out) for t in THRESHOLDS}
    return found, [int(size) for size in crowded.split(",") if size]


NEAR = Step(
    "near", 1, "Near copies", NearParams, _Near, 2048,
    codes={"out.near": "Almost a copy of another row"},
    words=Words(
        "1 row is almost a copy of another", "%(n)s rows are almost copies of another",
        "Texts that differ in a few words count double. One of each stays, shown beside the row that goes.",
        "Remove them", "copy",
    ),
    is_set=True, is_sampled=False, default="on",
)  # fmt: skip
