"""A version's rows as they leave the house: JSONL, CSV, Parquet, a few thousand rows in memory at a time."""

import codecs
import csv
import io
from collections.abc import Iterator
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from app.datasets.models import DatasetVersion
from app.datasets.tables import iterate, parts
from app.datasets.versions import folder


def jsonl(version: DatasetVersion) -> Iterator[bytes]:
    """Every row as a line of JSON: split, then messages or text, then the other columns."""
    for batch in iterate(parts(folder(version), "data-")):
        lines = []
        for row in batch:
            body = (
                {"messages": [_plain(m) for m in row["messages"]]} if row["kind"] == "chat" else {"text": row["text"]}
            )
            for key in ("chosen", "rejected"):
                if row.get(key):
                    body[key] = [_plain(m) for m in row[key]]
            lines.append(orjson.dumps({"split": row["split"], **body, "meta": orjson.loads(row["meta"])}))
        yield b"\n".join(lines) + b"\n"


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A turn as OpenAI writes it; `train` only where it is not learned."""
    turn: dict[str, Any] = {"role": message["role"], "content": message["content"]}
    for key in ("name", "tool_call_id"):
        if message.get(key):
            turn[key] = message[key]
    if message.get("weight") is not None:
        turn["weight"] = message["weight"]
    if message.get("tool_calls"):
        turn["tool_calls"] = orjson.loads(message["tool_calls"])
        if turn["content"] == message["tool_calls"]:
            turn["content"] = None
    return turn if message["train"] else {**turn, "train": False}


def parquet(version: DatasetVersion) -> Iterator[bytes]:
    """Every row as one Parquet file, with the columns of the frozen files."""
    sink = _Sink()
    writer: pq.ParquetWriter | None = None
    for path in parts(folder(version), "data-"):
        source = pq.ParquetFile(path)
        writer = writer or pq.ParquetWriter(pa.PythonFile(sink, "w"), source.schema_arrow, compression="zstd")
        for group in range(source.metadata.num_row_groups):
            writer.write_table(source.read_row_group(group))
            yield sink.taken()
    if writer:
        writer.close()
        yield sink.taken()


class _Sink(io.RawIOBase):
    """A file that cannot be gone back in: what is written waits to be taken."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._waiting += memoryview(data).cast("B")
        return len(memoryview(data).cast("B"))

    def taken(self) -> bytes:
        """What was written since the last time."""
        found, self._waiting = bytes(self._waiting), bytearray()
        return found


def csv_rows(version: DatasetVersion, *, is_spreadsheet: bool = False) -> Iterator[bytes]:
    """Every row as CSV: split, system, question, answer, text.

    `is_spreadsheet`: no cell starts a formula, and a byte order mark says UTF-8: without it Excel takes the accents
    for those of another encoding.
    """
    if is_spreadsheet:
        yield codecs.BOM_UTF8
    yield _csv([("split", "system", "question", "answer", "text", "source", "row")], False)
    for batch in iterate(parts(folder(version), "data-")):
        rows = []
        for row in batch:
            meta = orjson.loads(row["meta"])
            rows.append((row["split"], *_turns(row["messages"]), row["text"], meta["source"], meta["row"]))
        yield _csv(rows, is_spreadsheet)


def _turns(messages: list[dict[str, Any]]) -> tuple[str, str, str]:
    """(system, everything before the last answer, the last answer)."""
    system = "\n".join(m["content"] for m in messages if m["role"] == "system")
    turns = [m for m in messages if m["role"] != "system"]
    last = max((i for i, m in enumerate(turns) if m["role"] == "assistant"), default=len(turns))
    before = turns[:last]
    question = before[0]["content"] if len(before) == 1 else "\n".join(f"{m['role']}: {m['content']}" for m in before)
    return system, question, turns[last]["content"] if last < len(turns) else ""


def _csv(rows: list[tuple[Any, ...]], is_spreadsheet: bool) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out)
    for row in rows:
        writer.writerow([_safe(cell) for cell in row] if is_spreadsheet else row)
    return out.getvalue().encode("utf-8")


def _safe(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
