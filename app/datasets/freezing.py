"""Freezing: an immutable, hashed folder of rows that a run trains on. Same input and plan give the same id.

A version's folder: manifest.json, data-00000.parquet…, trace.parquet, sides.parquet. Written beside its place, made
durable, renamed.
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import xxhash

from app.core.storage import file_sha256, fsync_tree
from app.datasets.cleaning import STEPS, in_order
from app.datasets.dividing import divide, save_sides
from app.datasets.findings import Refused
from app.datasets.plan import Plan
from app.datasets.preparing import prepare
from app.datasets.reports import PrepareReport
from app.datasets.splitting import SPLITS, Split
from app.datasets.steps.catalogue import published
from app.datasets.tables import MESSAGES, ExampleWriter, iterate, parts

Tell = Callable[[int, int], None]
SHARD_ROWS = 50_000
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
    plan: Plan, out_dir: Path, tell: Tell, *, known: Path | None = None, evaluation: Sequence[str] = ()
) -> dict[str, Any]:
    """Build the version in `out_dir` (which must not exist); returns its manifest.

    `known`: the sides of an earlier version, whose rows stay on them. `evaluation`: texts that the project evaluates
    with; the report says how many rows of training share thirteen words in a row with one.
    Raises Refused when no row is left or when a row would leak from training into validation or test.
    """
    if out_dir.exists():
        raise FileExistsError(f"the version folder {out_dir.name} exists")
    temporary = out_dir.with_name(f".tmp-{out_dir.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    work = temporary / "work"
    try:
        report = prepare(plan, work, lambda done, total: tell(done, 3 * total))
        if not report.rows:
            raise Refused(
                "No row is left after mapping and cleaning. Undo a step or look at the mapping, then freeze again."
            )
        manifest = _write(plan, report, work, temporary, tell, known, evaluation)
        (work / "trace.parquet").rename(temporary / "trace.parquet")
        shutil.rmtree(work)
        (temporary / "manifest.json").write_bytes(canonical(manifest))
        fsync_tree(temporary)
        temporary.rename(out_dir)
        fsync_tree_entry(out_dir.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


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
    splits = [SPLITS[side] for side in divided.sides.tolist()]
    shards, content_hash = _shards(plan, source, splits, folder, lambda done: tell(2 * total + done, 3 * total))
    counts = Counter(splits)
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
        "step_versions": {name: step.version for name, step in STEPS.items()},
        "split": plan.split.model_dump(mode="json"),
        "edits": plan.edits.sha256 if plan.edits else None,
        "counts": {
            "rows_in": report.rows_in, "rows": report.rows, "out": report.out, "unmapped": report.unmapped,
            "mapping_codes": report.mapping_codes,
            "codes": {code: n for step in report.steps if step.is_applied for code, n in step.codes.items()},
            "splits": {split: counts[split] for split in SPLITS},
        },
        "split_report": divided.report,
        "statistics": report.statistics.model_dump(mode="json"),
        "kind": "chat" if report.statistics.chat_rows else "text",
        "content_hash": content_hash,
        "shards": shards,
        "libraries": {"pyarrow": pa.__version__},
    }  # fmt: skip


def _shards(
    plan: Plan, source: list[Path], splits: list[Split], folder: Path, tell: Callable[[int], None]
) -> tuple[list[dict[str, Any]], str]:
    """(name, rows and SHA-256 of each shard, the order-free hash of all rows)."""
    names = {file.file_id: file.filename for file in plan.files}
    shards: list[dict[str, Any]] = []
    writer: ExampleWriter | None = None
    content, row = 0, 0
    for batch in iterate(source):
        for example in batch:
            if row % SHARD_ROWS == 0:
                if writer:
                    writer.close()
                shards.append({"name": f"data-{len(shards):05d}.parquet", "rows": 0})
                writer = ExampleWriter(folder / shards[-1]["name"], FROZEN)
            assert writer is not None
            split = splits[row]
            content += xxhash.xxh3_128_intdigest(canonical([split, *learned(example)]))
            meta = {
                "source": names[example["_file"]], "row": example["_row"], "label": example["label"],
                "columns": orjson.loads(example["meta"]),
            }  # fmt: skip
            writer.add(
                {
                    "_rid": example["_rid"], "split": split, "kind": example["kind"],
                    "messages": example["messages"], "text": example["text"], "chosen": example["chosen"],
                    "rejected": example["rejected"], "meta": canonical(meta).decode(),
                }
            )  # fmt: skip
            shards[-1]["rows"] += 1
            row += 1
        tell(row)
    if writer:
        writer.close()
    for shard in shards:
        shard["sha256"] = file_sha256(folder / shard["name"])
    return shards, f"{content % 2**128:032x}"


def is_intact(folder: Path) -> bool:
    """Whether every shard of a frozen version still has the hash that its manifest names."""
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    return all(file_sha256(folder / shard["name"]) == shard["sha256"] for shard in manifest["shards"])
