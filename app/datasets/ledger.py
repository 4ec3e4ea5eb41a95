"""The ledger of a file: every record that did not fit, as it was."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

PER_PAGE = 100
EXCERPT_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """One problem; `raw` is text with undecodable bytes as �."""

    row: int
    raw: str
    note: str
    is_kept: bool
    place: str = ""


def lines(path: Path, code: str, offset: int) -> tuple[list[LedgerLine], int]:
    """(a page of the problems of one code, in the order of the file, how many there are)."""
    if not path.exists():
        return [], 0
    found: list[LedgerLine] = []
    total = 0
    source = pq.ParquetFile(path)
    for group in range(source.metadata.num_row_groups):
        table = source.read_row_group(group)
        table = table.filter(pc.equal(table.column("code"), code))
        start = max(0, offset - total)
        for row in table.slice(start, PER_PAGE - len(found)).to_pylist():
            raw = row["raw"].decode("utf-8", "replace")[:EXCERPT_CHARACTERS]
            found.append(LedgerLine(row["row"], raw, row["note"], row["is_kept"], row.get("place") or ""))
        total += table.num_rows
    return found, total
