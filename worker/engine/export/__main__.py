"""`python -m worker.engine.export`: one order on standard input, one JSON object a line on standard output.

{"phase"} while it works, then {"result"} or {"refused"}; memory is limited before the first file is opened.
"""

import argparse
import resource
import sys
from pathlib import Path
from typing import BinaryIO

import orjson

from app.contracts.export import ExportOrder
from worker.engine.__main__ import die_with_parent, own_stdout

CORE_BYTES = 0


def main() -> int:
    """Obey the order. Exit status 0 for a result or a refusal in words; anything else is a crash."""
    parser = argparse.ArgumentParser(prog="python -m worker.engine.export")
    parser.add_argument("--parent", type=int, help="end when this process is no longer the parent (Linux)")
    die_with_parent(parser.parse_args().parent)
    out = own_stdout()
    order = ExportOrder.model_validate_json(sys.stdin.buffer.readline())
    resource.setrlimit(resource.RLIMIT_CORE, (CORE_BYTES, CORE_BYTES))
    if order.memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (order.memory_bytes, order.memory_bytes))
    from worker.engine.errors import EngineError, is_disk_full, is_out_of_memory

    try:
        _say(out, {"result": export(order, out)})
    except EngineError as error:
        _say(out, {"refused": str(error)})
    except Exception as error:
        if is_out_of_memory(error):
            _say(out, {"refused": "This model needs more memory than an export may use here."})
        elif is_disk_full(error):
            _say(out, {"refused": "The disk is full. Free some space, then try again; nothing was lost."})
        else:
            raise
    return 0


def export(order: ExportOrder, out: BinaryIO) -> dict[str, object]:
    """Load, write, check; the report."""
    from worker.engine.export import source

    folder = Path(order.out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    _say(out, {"phase": "loading"})
    found = source.load(order)
    _say(out, {"phase": "writing and checking"})
    if order.kind == "adapter":
        from worker.engine.export.folders import write_adapter as write
    elif order.kind == "merged":
        from worker.engine.export.folders import write_merged as write
    else:
        from worker.engine.export.gguf_file import write_gguf as write
    return write(order, found, folder).model_dump()


def _say(out: BinaryIO, value: dict[str, object]) -> None:
    out.write(orjson.dumps(value) + b"\n")
    out.flush()


if __name__ == "__main__":
    sys.exit(main())
