"""Freezing: an immutable, hashed folder of rows that a run trains on. Same input and plan give the same id.

A version's folder: manifest.json, data-00000.parquet…, trace.parquet, sides.parquet. Written beside its place, made
durable, renamed.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from app.core.storage import file_sha256, fsync_tree
from app.datasets import crew
from app.datasets.cleaning import STEPS, in_order
from app.datasets.dividing import divide, save_sides
from app.datasets.findings import Refused
from app.datasets.plan import Plan
from app.datasets.preparing import ALONE_ROWS, link, prepare, prepared_digest
from app.datasets.reports import PrepareReport
from app.datasets.splitting import SPLITS, Sides
from app.datasets.steps.catalogue import published
from app.datasets.tables import MESSAGES, count, part_of, parts

Tell = Callable[[int, int], None]
# Texts of people hardly repeat, so no dictionary is tried for them.
REPEATING = ["split", "kind", "messages.list.element.role"]
FORMAT = 1
FROZEN = pa.schema(
    [
        ("_rid", pa.int64()),
        ("split", pa.string()),
        ("kind", pa.string()),
        ("messages", MESSAGES),
        ("text", pa.string()),
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("meta", pa.string()),
    ]
)


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: the bytes that are hashed."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def learned(example: dict[str, Any]) -> list[Any]:
    """What two rows must share to be the same row: everything but its place, its split and its other columns."""
    return [example["kind"], example["text"], *(_turns(example.get(k)) for k in ("messages", "chosen", "rejected"))]


def _turns(turns: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    return [{key: value for key, value in turn.items() if value is not None} for turn in turns or []]


def manifest_id(manifest: dict[str, Any]) -> str:
    """SHA-256 of the canonical manifest, hexadecimal: the version's id. It holds no times and no local ids."""
    return hashlib.sha256(canonical(manifest)).hexdigest()


def freeze(
    plan: Plan,
    out_dir: Path,
    tell: Tell,
    *,
    known: Path | None = None,
    evaluation: Sequence[str] = (),
    parent: str = "",
    ready: Path | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """Build the version in `out_dir` (which must not exist); returns its manifest.

    `known`: the sides of an earlier version, whose rows stay on them. `evaluation`: texts that the project evaluates
    with; the report says how many rows of training share thirteen words in a row with one. `parent`: the manifest id
    of the version before. `ready`: a working set; it saves the preparation when it was made of this very plan.
    Work in progress lies beside `out_dir` and outlives a kill: a second call goes on from the last finished shard.
    Raises Refused when no row is left or when a row would leak from training into validation or test.
    """
    if out_dir.exists():
        raise FileExistsError(f"the version folder {out_dir.name} exists")
    temporary = out_dir.with_name(f".tmp-{out_dir.name}")
    temporary.mkdir(parents=True, exist_ok=True)
    work = temporary / "work"
    try:
        report = _prepared(plan, work, ready, processes, tell)
        if not report.rows:
            raise Refused(
                "No row is left after mapping and cleaning. Undo a step or look at the mapping, then freeze again."
            )
        manifest = _write(plan, report, work, temporary, tell, known, evaluation, processes)
        manifest["parent"] = parent
        for name in ("trace.parquet", "steps"):
            if (work / name).exists():
                (work / name).rename(temporary / name)
        for left in temporary.glob("packed-*.json"):
            left.unlink()
        shutil.rmtree(work)
        (temporary / "manifest.json").write_bytes(canonical(manifest))
        fsync_tree(temporary)
        temporary.rename(out_dir)
        fsync_tree_entry(out_dir.parent)
    except Exception:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return manifest


def _prepared(plan: Plan, work: Path, ready: Path | None, processes: int, tell: Tell) -> PrepareReport:
    """The working set of the plan in `work`: from an earlier attempt, linked from `ready`, or made now."""
    digest = plan.digest()
    if prepared_digest(work) != digest:
        if ready is not None and prepared_digest(ready) == digest:
            shutil.rmtree(work, ignore_errors=True)
            partial = work.with_name("linked")
            shutil.rmtree(partial, ignore_errors=True)
            wanted = shutil.ignore_patterns("browsing")
            shutil.copytree(ready, partial, ignore=wanted, copy_function=link)
            partial.rename(work)
        else:
            prepare(plan, work, lambda done, total: tell(done, 3 * total), processes=processes)
    return PrepareReport.model_validate_json((work / "report.json").read_bytes())


def fsync_tree_entry(folder: Path) -> None:
    """Make a rename inside `folder` durable."""

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(
    plan: Plan,
    report: PrepareReport,
    work: Path,
    folder: Path,
    tell: Tell,
    known: Path | None,
    evaluation: Sequence[str],
    processes: int,
) -> dict[str, Any]:
    source = parts(work, "data-")
    total = report.rows
    divided = divide(
        source, plan.split, work / "split", known=known, evaluation=evaluation,
        tell=lambda done, of: tell(total + total * done // max(of, 1), 3 * total),
    )  # fmt: skip
    if divided.report["leaks"]:
        raise Refused(
            f"{divided.report['leaks']} rows would be in training and in the test at once, so nothing was frozen.",
            "split.leak",
        )
    save_sides(folder / "sides.parquet", divided)
    packed = _packed(plan, source, divided.sides, folder, processes, lambda done: tell(2 * total + done, 3 * total))
    placed = np.bincount(divided.sides, minlength=len(SPLITS)).tolist()
    return {
        "format": FORMAT,
        "schema": {field.name: str(field.type) for field in FROZEN},
        "files": [
            {
                "filename": file.filename, "sha256": file.sha256, "rows": file.rows,
                "mapping": file.mapping.model_dump(mode="json"), "options": file.options.model_dump(mode="json"),
            }
            for file in plan.files
        ],
        "steps": [published(step) for step in in_order(plan.steps)],
        "overrides": [override.model_dump(mode="json") for override in plan.overrides],
        "step_versions": {name: step.version for name, step in STEPS.items()},
        "split": plan.split.model_dump(mode="json"),
        "edits": plan.edits.sha256 if plan.edits else None,
        "counts": {
            "rows_in": report.rows_in, "rows": report.rows, "out": report.out, "unmapped": report.unmapped,
            "made": report.made, "mapping_codes": report.mapping_codes,
            "codes": {code: n for step in report.steps if step.is_applied for code, n in step.codes.items()},
            "splits": dict(zip(SPLITS, placed, strict=True)),
        },
        "split_report": divided.report,
        "statistics": report.statistics.model_dump(mode="json"),
        "kind": "chat" if report.statistics.chat_rows else "text",
        "content_hash": f"{sum(int(shard.pop('content'), 16) for shard in packed) % 2**128:032x}",
        "shards": packed,
        "libraries": {"pyarrow": pa.__version__},
    }  # fmt: skip


def _packed(
    plan: Plan, source: list[Path], sides: Sides, folder: Path, processes: int, tell: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Every part of the working set as a shard: name, rows, SHA-256 and the sum of the hashes of its rows."""
    names = {file.file_id: file.filename for file in plan.files}
    orders, first = [], 0
    for number, path in enumerate(source):
        rows = count([path])
        orders.append(Pack(str(path), str(folder), number, sides[first : first + rows], names))
        first += rows
    found: list[dict[str, Any]] = [{}] * len(orders)
    done = 0
    for number, packed in crew.each(pack, orders, processes if first >= ALONE_ROWS else 1):
        found[number] = packed
        done += packed["rows"]
        tell(done)
    return found


class Pack(NamedTuple):
    """An order: one part of the working set, with the side of each of its rows."""

    path: str
    folder: str
    number: int
    sides: Sides
    names: dict[str, str]


def pack(order: Pack) -> dict[str, Any]:
    """Write one shard; what the manifest says of it. Done before: read that again."""
    folder, name = Path(order.folder), f"data-{order.number:05d}.parquet"
    done = folder / f"packed-{order.number:05d}.json"
    key = xxhash.xxh3_64_hexdigest(order.sides.tobytes())
    if done.exists():
        known: dict[str, Any] = orjson.loads(done.read_bytes())
        if known.pop("sides") == key:
            return known
    content = 0
    temporary = folder / f".tmp-{name}"
    source = pq.ParquetFile(order.path)
    with pq.ParquetWriter(
        temporary, FROZEN, compression="zstd", compression_level=3, store_schema=False, use_dictionary=REPEATING
    ) as writer:
        first = 0
        for group in range(source.metadata.num_row_groups):
            table = source.read_row_group(group, use_threads=False)
            sides = order.sides[first : first + table.num_rows]
            content += contents(table, sides)
            columns = {name: table.column(name) for name in ("_rid", "kind", "messages", "text", "chosen", "rejected")}
            columns |= {
                "split": pa.array(SPLITS, pa.string()).take(pa.array(sides)),
                "meta": _metas(table, order.names),
            }
            writer.write_table(pa.table([columns[field.name] for field in FROZEN], schema=FROZEN))
            first += table.num_rows
    temporary.rename(folder / name)
    packed = {"name": name, "rows": first, "sha256": file_sha256(folder / name), "content": f"{content:x}"}
    (folder / f".tmp-{done.name}").write_bytes(orjson.dumps({**packed, "sides": key}))
    (folder / f".tmp-{done.name}").rename(done)
    return packed


def contents(table: pa.Table, sides: Sides) -> int:
    """The sum of the 128-bit hashes of the canonical rows of a table: what is in `learned`, with the split before it.

    Every object is made with its keys in order, so that nothing has to be sorted.
    """
    columns = [table.column("kind").to_pylist(), table.column("text").to_pylist()]
    columns += [_conversations(table.column(name)) for name in ("messages", "chosen", "rejected")]
    names = [SPLITS[side] for side in sides.tolist()]
    dumps, digest = orjson.dumps, xxhash.xxh3_128_intdigest
    return sum(digest(dumps(row)) for row in zip(names, *columns, strict=True))


def _conversations(column: pa.ChunkedArray) -> list[list[dict[str, Any]]]:
    """The turns of every row, each with what it has, in the order of the names."""
    whole = column.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(whole), 0).to_pylist()
    flat = whole.flatten()
    names = sorted(field.name for field in flat.type)
    used = [name for name in names if flat.field(name).null_count < len(flat)]
    cells = zip(*(flat.field(name).to_pylist() for name in used), strict=True)
    if any(flat.field(name).null_count for name in used):
        turns = [{name: cell for name, cell in zip(used, row, strict=True) if cell is not None} for row in cells]
    else:
        turns = [dict(zip(used, row, strict=True)) for row in cells]
    ends = list(accumulate(lengths))
    return [turns[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _metas(table: pa.Table, names: dict[str, str]) -> pa.Array:
    """Where each row came from, its label and its other columns, as canonical JSON."""
    sources = {file: canonical(name).decode() for file, name in names.items()}
    labels: dict[str, str] = {}
    found = []
    cells = (table.column(name).to_pylist() for name in ("_rid", "_file", "_row", "label", "meta"))
    for rid, file, row, label, meta in zip(*cells, strict=True):
        if label not in labels:
            labels[label] = canonical(label).decode()
        columns = canonical(orjson.loads(meta)).decode() if meta != "{}" else meta
        part = f'"part":{part_of(rid)},' if part_of(rid) else ""
        found.append(f'{{"columns":{columns},"label":{labels[label]},{part}"row":{row},"source":{sources[file]}}}')
    return pa.array(found, pa.string())


def is_intact(folder: Path) -> bool:
    """Whether every shard of a frozen version still has the hash that its manifest names."""
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    return all(file_sha256(folder / shard["name"]) == shard["sha256"] for shard in manifest["shards"])
