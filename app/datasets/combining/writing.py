"""A combined version on disk, built like a frozen one: shards, manifest, all or nothing. Runs in the limited child."""

import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from app.core.storage import file_sha256, fsync_tree
from app.datasets.combining.choosing import Chosen, Facts, choose, facts, rows_of, settled
from app.datasets.combining.contract import Combination
from app.datasets.contamination import prove
from app.datasets.dividing import Divided, save_sides
from app.datasets.findings import Refused
from app.datasets.freezing import FORMAT, FROZEN, canonical, fsync_tree_entry, learned
from app.datasets.grouping import facts_of
from app.datasets.near.spill import workers_for
from app.datasets.splitting import SPLITS, Sides, SplitSettings
from app.datasets.statistics import Counting
from app.datasets.steps.batches import of_examples
from app.datasets.tables import ExampleWriter, parts

Tell = Callable[[int, int], None]
SHARD_ROWS = 50_000
SIDES = "sides.parquet"
COUNTED_TOGETHER = 2000


def combine(order: Combination, out_dir: Path, tell: Tell) -> dict[str, Any]:
    """Build the version in `out_dir` (which must not exist); returns its manifest. Raises Refused for no row at all."""
    if out_dir.exists():
        raise FileExistsError(f"the version folder {out_dir.name} exists")
    manifests = [orjson.loads((Path(p.folder) / "manifest.json").read_bytes()) for p in order.parents]
    total = 2 * sum(manifest["counts"]["rows"] for manifest in manifests)
    found: list[Facts] = []
    for parent in order.parents:
        before = sum(len(f.side) for f in found)
        found.append(facts(Path(parent.folder), order.by, partial(_told, tell, before, total)))
    temporary = out_dir.with_name(f".tmp-{out_dir.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        sides = _sides(order, found, temporary)
        manifest = _write(
            order, choose(order, found, sides), manifests, temporary, partial(_told, tell, total // 2, total)
        )
        (temporary / "manifest.json").write_bytes(canonical(manifest))
        fsync_tree(temporary)
        temporary.rename(out_dir)
        fsync_tree_entry(out_dir.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _sides(order: Combination, found: list[Facts], folder: Path) -> Sides:
    """Where each row of all parents stands. Rows of several parents are grouped anew: near copies, equal questions."""
    sides = np.concatenate([f.side for f in found])
    if len(order.parents) == 1:
        shutil.copyfile(Path(order.parents[0].folder) / SIDES, folder / SIDES)
        return sides
    paths = [path for parent in order.parents for path in parts(Path(parent.folder), "data-")]
    scratch = folder / "split"
    grouped = facts_of(
        paths, SplitSettings(), scratch, workers=workers_for(len(sides)), evaluation=(), tell=lambda _done, _total: None
    )
    proof = prove(grouped.spilled, settled(sides, grouped.labels), grouped.labels, grouped.keys)
    if proof.report["leaks"]:
        raise Refused(
            f"{proof.report['leaks']} rows would be in training and in the test at once, so nothing was made.",
            "split.leak",
        )
    shutil.rmtree(scratch)
    save_sides(folder / SIDES, Divided(proof.sides, grouped.keys, proof.report))
    return proof.sides


def _told(tell: Tell, before: int, total: int, rows: int) -> None:
    tell(before + rows, total)


class _Shards:
    """Writes rows into shards and adds up the order-free hash of all of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.shards, self.content = folder, [], 0  # type: ignore[var-annotated]
        self.counting, self.splits = Counting(), Counter[str]()
        self._writer: ExampleWriter | None = None
        self._uncounted: list[dict[str, Any]] = []
        self.rows = 0

    def add(self, row: dict[str, Any]) -> None:
        if self.rows % SHARD_ROWS == 0:
            self.close()
            self.shards.append({"name": f"data-{len(self.shards):05d}.parquet", "rows": 0})
            self._writer = ExampleWriter(self.folder / self.shards[-1]["name"], FROZEN)
        assert self._writer is not None
        self._writer.add(row)
        self.content += xxhash.xxh3_128_intdigest(canonical([row["split"], *learned(row)]))
        self._uncounted.append({**row, "label": orjson.loads(row["meta"]).get("label") or ""})
        if len(self._uncounted) >= COUNTED_TOGETHER:
            self._count()
        self.splits[row["split"]] += 1
        self.shards[-1]["rows"] += 1
        self.rows += 1

    def _count(self) -> None:
        if self._uncounted:
            self.counting.add_batch(of_examples(self._uncounted))
        self._uncounted = []

    def close(self) -> None:
        self._count()
        if self._writer:
            self._writer.close()


def _write(
    order: Combination, chosen: Chosen, manifests: list[dict[str, Any]], folder: Path, tell: Callable[[int], None]
) -> dict[str, Any]:
    if not len(chosen.row):
        raise Refused("No row is left. Take more rows, or other versions.")
    out, trace = _Shards(folder), _Trace(folder / "trace.parquet")
    offset = place = 0
    for number, parent in enumerate(order.parents):
        ids = _rids(Path(parent.folder))
        # Row ids of the first parent stay; those of the others and of repetitions go on after all before them.
        begin, row_number = offset, -1
        extra = begin + int(ids.max(initial=-1)) + 1
        for batch in rows_of(Path(parent.folder)):
            for row in batch:
                row_number += 1
                while place < len(chosen.row) and (chosen.parent[place], chosen.row[place]) == (number, row_number):
                    rid = begin + row["_rid"] if not chosen.copy[place] else (extra := extra + 1) - 1
                    trace.add(rid, parent.number, row["_rid"], int(chosen.copy[place]))
                    out.add({**row, "_rid": rid, "split": SPLITS[chosen.side[place]]})
                    place += 1
            tell(out.rows)
        offset = extra
    out.close()
    trace.close()
    for shard in out.shards:
        shard["sha256"] = file_sha256(folder / shard["name"])
    return _manifest(order, chosen, manifests, out)


def _rids(folder: Path) -> np.ndarray:
    tables = [pq.read_table(path, columns=["_rid"]) for path in sorted(folder.glob("data-*.parquet"))]
    return pa.concat_tables(tables).column("_rid").to_numpy() if tables else np.zeros(0, np.int64)


class _Trace:
    """trace.parquet: where each row comes from."""

    _SCHEMA = pa.schema(
        [("_rid", pa.int64()), ("version", pa.int32()), ("parent_rid", pa.int64()), ("copy", pa.int32())]
    )

    def __init__(self, path: Path) -> None:
        self._writer = ExampleWriter(path, self._SCHEMA)

    def add(self, rid: int, version: int, parent_rid: int, copy: int) -> None:
        self._writer.add({"_rid": rid, "version": version, "parent_rid": parent_rid, "copy": copy})

    def close(self) -> None:
        self._writer.close()


def _manifest(order: Combination, chosen: Chosen, manifests: list[dict[str, Any]], out: _Shards) -> dict[str, Any]:
    statistics = out.counting.result()
    rows_in = sum(manifest["counts"]["rows"] for manifest in manifests)
    files = {file["sha256"]: file for manifest in manifests for file in manifest["files"]}
    return {
        "format": FORMAT,
        "schema": {field.name: str(field.type) for field in FROZEN},
        "files": list(files.values()),
        "combination": {
            **order.model_dump(mode="json", exclude={"parents"}),
            "parents": [
                {"number": p.number, "manifest_sha256": p.manifest_sha256, "weight": p.weight} for p in order.parents
            ],
            "taken": np.bincount(chosen.parent, minlength=len(order.parents)).tolist(),
        },
        "steps": [],
        "split": {"seed": order.seed},
        "counts": {
            "rows_in": rows_in, "rows": out.rows, "unmapped": 0, "mapping_codes": {},
            "out": rows_in - int((chosen.copy == 0).sum()), "repeated": int((chosen.copy > 0).sum()),
            "codes": {"out.exact": chosen.copies_left_out} if chosen.copies_left_out else {},
            "splits": {split: out.splits[split] for split in SPLITS},
        },
        "split_report": {"leaks": 0, "moved": chosen.moved},
        "statistics": statistics.model_dump(mode="json"),
        "kind": "chat" if statistics.chat_rows else "text",
        "content_hash": f"{out.content % 2**128:032x}",
        "shards": out.shards,
        "libraries": {"pyarrow": pa.__version__, "numpy": np.__version__},
    }  # fmt: skip
