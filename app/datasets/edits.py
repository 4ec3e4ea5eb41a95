"""Edits of rows as a layer over the source: pure, so that pages, preparing and freezing apply the same one.

A row is known by its place in the source (file and record), so an edit survives every new preparation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

DELETED, EXCLUDED, KEPT = 1, 2, 4
LAYER = pa.schema(
    [
        ("key", pa.uint64()),
        ("flags", pa.uint8()),
        ("example", pa.binary()),
        ("label", pa.string()),
        ("tags", pa.list_(pa.string())),
    ]
)


def row_keys(files: Sequence[str], rows: np.ndarray) -> np.ndarray:
    """A 64-bit key for each row: the hash of its file's id mixed with its number (splitmix64, Steele et al. 2014)."""
    seeds = {file: xxhash.xxh3_64_intdigest(file.encode()) for file in set(files)}
    mixed = np.array([seeds[file] for file in files], np.uint64)
    with np.errstate(over="ignore"):
        mixed = mixed + np.asarray(rows).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)


@dataclass(frozen=True, slots=True)
class RowEdit:
    """What was decided about one row. `example` replaces `messages` and `text`; None leaves them as they are."""

    flags: int = 0
    example: dict[str, Any] | None = None
    label: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class EditLayer:
    """Edits by key, sorted; texts are kept as JSON and read only for the rows that are touched.

    Memory: 9 bytes a row that is only deleted or excluded, the texts and tags of the others.
    """

    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    flags: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    examples: dict[int, bytes] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)
    tags: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def places(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which of `keys` have an edit, where it lies in this layer)."""
        if not len(self.keys):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        hits = np.flatnonzero(self.keys[at] == keys)
        return hits, at[hits]

    def of(self, key: int) -> RowEdit | None:
        """The edit of one row."""
        hits, at = self.places(np.array([key], np.uint64))
        if not len(hits):
            return None
        raw = self.examples.get(key)
        example = orjson.loads(raw) if raw is not None else None
        return RowEdit(int(self.flags[at[0]]), example, self.labels.get(key), self.tags.get(key, ()))

    def save(self, path: Path) -> None:
        """Write the layer as Parquet."""
        keys = self.keys.tolist()
        table = pa.table(
            {
                "key": pa.array(self.keys, pa.uint64()),
                "flags": pa.array(self.flags, pa.uint8()),
                "example": pa.array([self.examples.get(key) for key in keys], pa.binary()),
                "label": pa.array([self.labels.get(key) for key in keys], pa.string()),
                "tags": pa.array([list(self.tags.get(key, ())) for key in keys], pa.list_(pa.string())),
            },
            schema=LAYER,
        )
        pq.write_table(table, path, compression="zstd", row_group_size=50_000)

    @classmethod
    def load(cls, path: Path | str) -> "EditLayer":
        """Read a layer that `save` wrote."""
        keys, flags = [], []
        examples: dict[int, bytes] = {}
        labels: dict[int, str] = {}
        tags: dict[int, tuple[str, ...]] = {}
        with pq.ParquetFile(path) as source:
            for batch in source.iter_batches(50_000):
                keys.append(batch.column("key").to_numpy())
                flags.append(batch.column("flags").to_numpy())
                numbers = keys[-1].tolist()
                for name, store in (("example", examples), ("label", labels), ("tags", tags)):
                    for key, value in zip(numbers, batch.column(name).to_pylist(), strict=True):
                        if value is not None and value != []:
                            store[key] = tuple(value) if name == "tags" else value  # type: ignore[assignment]
        if not keys:
            return cls()
        return cls(np.concatenate(keys), np.concatenate(flags), examples, labels, tags)


def apply_edits(batch: list[dict[str, Any]], keys: np.ndarray, edits: EditLayer) -> list[str]:
    """Change mapped examples in place (kind, messages, text, label, and `tags` in their meta) before they are cleaned.

    Returns a word for each row: "" (nothing), "edited", "deleted", "excluded" or "kept" (whatever a step says).
    `keys` come from `row_keys`. A batch without an edited row costs one binary search.
    """
    words = [""] * len(batch)
    hits, places = edits.places(keys)
    for hit, place in zip(hits.tolist(), places.tolist(), strict=True):
        key, flags, example = int(keys[hit]), int(edits.flags[place]), batch[hit]
        if flags & (DELETED | EXCLUDED):
            words[hit] = "deleted" if flags & DELETED else "excluded"
            continue
        if (raw := edits.examples.get(key)) is not None:
            example |= orjson.loads(raw)
        if (label := edits.labels.get(key)) is not None:
            example["label"] = label
        if tags := edits.tags.get(key):
            example["meta"] = {**example["meta"], "tags": list(tags)}
        words[hit] = "kept" if flags & KEPT else "edited"
    return words
