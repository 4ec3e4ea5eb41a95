"""What one pass over the rows leaves on disk: signatures and shingle sets, so that memory does not grow with the rows.

Three arrays (`.npy`) for each batch of rows: `bands` (16, rows, 4), `sizes` (rows), `values` (all shingles).
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from app.datasets.near.shingles import Shingles, shingles
from app.datasets.near.signatures import BAND, BANDS, signatures
from app.datasets.near.texts import What, read

Rows = npt.NDArray[np.int64]
Tell = Callable[[int, int], None]
Crew = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
BATCH_ROWS, BATCH_BYTES = 20_000, 32 * 2**20
# Below this starting a second process costs more than it brings.
ALONE_ROWS = 20_000


class Batch(NamedTuple):
    """The files of rows `start` to `start + rows`."""

    start: int
    rows: int
    bands: str
    sizes: str
    values: str


class Spill(NamedTuple):
    """Spilled rows. `folder` takes what is found between them; rows that are not alive are never candidates."""

    folder: str
    batches: tuple[Batch, ...]
    has_dead: bool = False

    @property
    def rows(self) -> int:
        """All rows."""
        return self.batches[-1].start + self.batches[-1].rows if self.batches else 0

    def alive(self) -> Rows:
        """Rows that count, ascending."""
        return np.load(Path(self.folder, "alive.npy")) if self.has_dead else np.arange(self.rows)

    def band(self, band: int) -> npt.NDArray[np.uint32]:
        """(rows, 4)."""
        parts = [np.load(batch.bands, mmap_mode="r")[band] for batch in self.batches]
        return np.concatenate(parts) if parts else np.empty((0, BAND), np.uint32)

    def sizes(self) -> npt.NDArray[np.uint32]:
        """Shingles of each row."""
        parts = [np.load(batch.sizes, mmap_mode="r") for batch in self.batches]
        return np.concatenate(parts).astype(np.uint32) if parts else np.empty(0, np.uint32)

    def sets(self, number: int) -> Shingles:
        """All rows of one batch, mapped."""
        batch = self.batches[number]
        sizes = np.load(batch.sizes)
        return Shingles(np.load(batch.values, mmap_mode="r"), np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]))

    def _parted(self, wanted: Rows) -> Iterator[tuple[int, Rows]]:
        """(batch, rows of it) for `wanted` rows (ascending)."""
        limits = np.searchsorted(wanted, [batch.start for batch in self.batches] + [self.rows])
        for number in np.flatnonzero(np.diff(limits)):
            yield int(number), wanted[limits[number] : limits[number + 1]] - self.batches[number].start

    def signatures(self, wanted: Rows) -> npt.NDArray[np.uint32]:
        """(16, rows, 4) of `wanted` rows (ascending)."""
        parts = [np.load(self.batches[n].bands, mmap_mode="r")[:, local] for n, local in self._parted(wanted)]
        return np.concatenate(parts, axis=1) if parts else np.empty((BANDS, 0, BAND), np.uint32)

    def gather(self, wanted: Rows) -> Shingles:
        """The sets of `wanted` rows (ascending)."""
        values, sizes = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for number, local in self._parted(wanted):
            taken = take(self.sets(number), local)
            values.append(taken.values)
            sizes.append(taken.sizes())
        return Shingles(np.concatenate(values), np.concatenate([[0], np.cumsum(np.concatenate(sizes))]))


def take(sets: Shingles, rows: Rows) -> Shingles:
    """The sets of some rows, in the order given."""
    begins = sets.offsets[rows]
    sizes = sets.offsets[rows + 1] - begins
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    places = np.repeat(begins - offsets[:-1], sizes) + np.arange(offsets[-1])
    return Shingles(np.asarray(sets.values[places]), offsets)


def look(texts: pa.Array) -> dict[str, npt.NDArray[Any]]:
    """What is kept of the texts of a batch: the arrays `bands`, `sizes` and `values`."""
    return kept_of(shingles(texts))


def kept_of(sets: Shingles) -> dict[str, npt.NDArray[Any]]:
    """The same of the sets of a batch."""
    signed = signatures(sets).reshape(-1, BANDS, BAND)
    return {
        "bands": np.ascontiguousarray(signed.transpose(1, 0, 2)),
        "sizes": sets.sizes().astype(np.uint32),
        "values": sets.values,
    }


def row_groups(paths: Sequence[Path]) -> Iterator[tuple[Path, list[int], int]]:
    """(file, row groups, rows) of runs of at most 20,000 rows or 32 MB."""
    for path in paths:
        meta = pq.read_metadata(path)
        groups: list[int] = []
        rows = size = 0
        for group in range(meta.num_row_groups):
            info = meta.row_group(group)
            if groups and (rows + info.num_rows > BATCH_ROWS or size + info.total_byte_size > BATCH_BYTES):
                yield path, groups, rows
                rows, size, groups = 0, 0, []
            groups.append(group)
            rows, size = rows + info.num_rows, size + info.total_byte_size
        if rows:
            yield path, groups, rows


def _look_and_save(order: tuple[Batch, str, list[int], What]) -> None:
    batch, path, groups, what = order
    for name, values in look(read(path, groups, what)).items():
        np.save(getattr(batch, name), values)


def spill(paths: Sequence[Path], folder: Path, work: Crew, what: What, tell: Tell) -> Spill:
    """One pass over the rows of all `paths` (Parquet files of examples, or of one column `text`)."""
    folder.mkdir(parents=True, exist_ok=True)
    orders, start = [], 0
    for number, (path, groups, rows) in enumerate(row_groups(paths)):
        files = (str(folder / f"{name}-{number:05d}.npy") for name in ("bands", "sizes", "values"))
        orders.append((Batch(start, rows, *files), str(path), groups, what))
        start += rows
    for order, _ in zip(orders, work(_look_and_save, orders), strict=True):
        tell(order[0].start + order[0].rows, start)
    return Spill(str(folder), tuple(order[0] for order in orders))


@contextmanager
def crew(workers: int) -> Iterator[Crew]:
    """Something like `map` over this process or several. Results come in the order of the tasks, whoever did them, so
    nothing depends on how many there are."""
    if workers <= 1:
        yield map
        return
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield pool.map


def workers_for(rows: int) -> int:
    """Two processes where the rows are worth starting a second one."""
    return 2 if rows > ALONE_ROWS and (os.cpu_count() or 1) > 1 else 1
