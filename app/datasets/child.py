"""The limited child process that touches foreign bytes: `python -m app.datasets.child`, one order on standard input.

Standard output carries one JSON object a line: {"done", "total"} while it works, then {"result"} or {"refused"}.
Limits of memory and processor time are set before the first byte is read, so a hostile file can only end the child.
"""

import errno
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, TypeAdapter

from app.contracts.base import Contract
from app.core.priority import give_way
from app.datasets import confinement
from app.datasets.combining.contract import Combination
from app.datasets.options import ReadOptions
from app.datasets.plan import Plan

TELL_EVERY_S = 0.2
# An honest document needs a fraction of this; a small hostile one could work for hours.
DOCUMENT_MEMORY_BYTES, DOCUMENT_CPU_S, DOCUMENT_CPU_S_PER_MB = 2 * 2**30, 50, 2


class Limits(Contract):
    """Bounds of the child. Memory is address space in bytes; processor time in seconds."""

    memory_bytes: int = 6 * 2**30
    cpu_s: int = 600
    file_bytes: int = 60 * 2**30


class ImportOrder(Contract):
    """Read a received file."""

    verb: Literal["import"] = "import"
    source: str
    filename: str
    out_dir: str
    options: ReadOptions = Field(default_factory=ReadOptions)
    password: str = Field("", repr=False)
    limits: Limits = Field(default_factory=Limits)


class PrepareOrder(Contract):
    """Map and clean."""

    verb: Literal["prepare"] = "prepare"
    plan: Plan
    out_dir: str
    processes: int = 1
    limits: Limits = Field(default_factory=Limits)


class FreezeOrder(Contract):
    """Build a version. `known`: sides of an earlier version; `evaluation`: texts that the project evaluates with."""

    verb: Literal["freeze"] = "freeze"
    plan: Plan
    out_dir: str
    parent: str = ""
    ready: str = ""
    processes: int = 1
    known: str = ""
    evaluation: list[str] = Field(default_factory=list)
    limits: Limits = Field(default_factory=Limits)


class CombineOrder(Contract):
    """Build a version of other versions."""

    verb: Literal["combine"] = "combine"
    combination: Combination
    out_dir: str
    limits: Limits = Field(default_factory=Limits)


class CompareOrder(Contract):
    """Compare two versions of `rows` rows each."""

    verb: Literal["compare"] = "compare"
    old_dir: str
    new_dir: str
    rows: tuple[int, int]
    out_dir: str
    limits: Limits = Field(default_factory=Limits)


Order = Annotated[ImportOrder | PrepareOrder | FreezeOrder | CombineOrder | CompareOrder, Field(discriminator="verb")]
order_adapter: TypeAdapter[Order] = TypeAdapter(Order)


_FULL = "The disk is full. Free some space, then try again; nothing was lost."
# What a write says when there is no room: on the disk, in the quota, below the bound of one written file.
OUT_OF_ROOM = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "What comes out of this file is over the limit of one file here. Split it, then bring the parts.",
}


def _say(value: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(value) + b"\n")
    sys.stdout.buffer.flush()


def _teller() -> Any:
    last = [0.0]

    def tell(done: int, total: int) -> None:
        now = time.monotonic()
        if now - last[0] >= TELL_EVERY_S:
            last[0] = now
            _say({"done": done, "total": total})

    return tell


def _import(order: ImportOrder) -> Any:
    """The one order that reads foreign bytes: it is shut in before it does."""
    from app.datasets.importing import DOCUMENTS, import_file

    confinement.shut_in()

    def confine(kind: str, size_bytes: int) -> None:
        if kind in DOCUMENTS:
            confinement.tighten(DOCUMENT_MEMORY_BYTES, DOCUMENT_CPU_S + int(DOCUMENT_CPU_S_PER_MB * size_bytes / 1e6))

    return import_file(
        Path(order.source), order.filename, Path(order.out_dir), order.options, _teller(), order.password, confine
    )


def main() -> int:
    """Obey the order. Exit status 0 for a result or a refusal in words; anything else is a crash."""
    order = order_adapter.validate_json(sys.stdin.buffer.readline())
    give_way()
    confinement.limit(order.limits.memory_bytes, order.limits.cpu_s, order.limits.file_bytes)
    from app.datasets.findings import Refused

    try:
        if isinstance(order, ImportOrder):
            report: Any = _import(order).model_dump(mode="json")
        elif isinstance(order, PrepareOrder):
            from app.datasets.preparing import prepare

            report = prepare(order.plan, Path(order.out_dir), _teller(), processes=order.processes).model_dump(
                mode="json"
            )
        elif isinstance(order, CombineOrder):
            from app.datasets.combining.writing import combine

            report = combine(order.combination, Path(order.out_dir), _teller())
        elif isinstance(order, CompareOrder):
            from app.datasets.combining.comparing import compare

            report = compare(
                Path(order.old_dir), Path(order.new_dir), Path(order.out_dir), order.rows, _teller()
            ).model_dump(mode="json")
        else:
            from app.datasets.freezing import freeze

            report = freeze(
                order.plan, Path(order.out_dir), _teller(), parent=order.parent,
                ready=Path(order.ready) if order.ready else None, processes=order.processes,
                known=Path(order.known) if order.known else None, evaluation=order.evaluation,
            )  # fmt: skip
    except Refused as refusal:
        _say({"refused": refusal.sentence, "code": refusal.code})
        return 0
    except MemoryError:
        _say(
            {
                "refused": "This file needs more memory than one file may use here. Split it, then bring the parts.",
                "code": "file.memory",
            }
        )
        return 0
    except OSError as error:
        if error.errno not in OUT_OF_ROOM:
            raise
        _say({"refused": OUT_OF_ROOM[error.errno], "code": "disk_full"})
        return 0
    _say({"result": report})
    return 0


if __name__ == "__main__":
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    sys.exit(main())
