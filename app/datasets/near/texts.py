"""Which text of an example is compared: everything that is said in it, or only what is asked."""

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

What = Literal["example", "prompt", "answer"]


def read(path: Path | str, groups: list[int], what: What) -> pa.Array:
    """One text a row from row groups of a Parquet file with `messages` and `text`, or with `text` alone."""
    file = pq.ParquetFile(path)
    columns = [name for name in ("messages", "text") if name in file.schema_arrow.names]
    return of_table(file.read_row_groups(groups, columns=columns, use_threads=False), what)


def of_table(table: pa.Table, what: What) -> pa.Array:
    """One text for every row of a table of examples."""
    plain = pc.fill_null(_whole(table.column("text")), "")
    if what != "example":
        plain = pa.array([""], pa.string()).take(pa.array(np.zeros(len(plain), np.int64)))
    if "messages" not in table.schema.names:
        return plain
    turns = _whole(table.column("messages"))
    lengths = pc.fill_null(pc.list_value_length(turns), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    if not lengths.any():
        return plain
    flat = turns.flatten()
    owners = np.repeat(np.arange(len(lengths)), lengths)
    is_system, is_answer = (
        pc.equal(flat.field("role"), role).to_numpy(zero_copy_only=False) for role in ("system", "assistant")
    )
    joined = of_turns(flat.field("content"), owners, is_system, is_answer, len(lengths), what)
    return joined if lengths.all() else pc.if_else(pa.array(lengths > 0), joined, plain)


def of_turns(
    contents: pa.Array,
    owners: npt.NDArray[np.integer],
    is_system: npt.NDArray[np.bool_],
    is_answer: npt.NDArray[np.bool_],
    rows: int,
    what: What,
) -> pa.Array:
    """The turns of each row in one text. `example`: all but the system prompt, which many rows share; `prompt`: what
    comes before the last answer; `answer`: the last answer."""
    is_in = ~is_system
    if what != "example":
        places = np.arange(len(owners))
        last = np.full(rows, -1)
        last[owners[is_answer]] = places[is_answer]
        is_in = is_in & (places < last[owners]) if what == "prompt" else places == last[owners]
    counts = np.bincount(owners[is_in], minlength=rows)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    chosen = contents if is_in.all() else contents.filter(pa.array(is_in))
    lists = pa.ListArray.from_arrays(offsets, chosen.cast(pa.string()))
    return pc.fill_null(pc.binary_join(lists, "\n"), "")


def _whole(column: pa.ChunkedArray) -> pa.Array:
    found = column.combine_chunks()
    return found if isinstance(found, pa.Array) else pa.concat_arrays(found.chunks)
