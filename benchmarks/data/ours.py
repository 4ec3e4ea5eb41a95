"""Our side of the data benchmark, one part a process: `python -m benchmarks.data.ours VERB PATH…`."""

import shutil
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from app.datasets.importing import import_file
from app.datasets.mapping import Mapping
from app.datasets.options import ReadOptions
from app.datasets.plan import Plan, PlannedFile
from app.datasets.preparing import prepare
from app.datasets.steps.catalogue import STEPS, of_preset
from app.datasets.steps.contract import ASSISTANT, USER, Batch, ChosenStep
from app.datasets.steps.copies import row_keys
from app.datasets.tables import count, parts

CHAIN = ("unicode", "markup", "whitespace", "length", "personal")
PROCESSES = 2


def quiet(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


def planned(rows: Path, steps: list[ChosenStep]) -> Plan:
    """A plan of one imported file of questions and answers."""
    file = PlannedFile(
        file_id="made", filename="made.jsonl", sha256="0" * 64, rows=count(parts(rows)), rows_dir=str(rows),
        mapping=Mapping(prompt="{question}", answer="{answer}"),
    )  # fmt: skip
    return Plan(files=[file], steps=steps)


def chain() -> list[ChosenStep]:
    """The steps of the cleaning chain. Ours looks for nine kinds of personal data, the peers for two."""
    return [ChosenStep(name=name, version=STEPS[name].version) for name in CHAIN]


def batches(table: pa.Table) -> list[Batch]:
    """The rows as the steps hold them in memory."""
    found = []
    for batch in table.to_batches(20_000):
        rows = batch.num_rows
        sides = [pl.Series(batch.column(name)) for name in ("question", "answer")]
        order = np.arange(2 * rows).reshape(2, rows).T.ravel()
        empty = pl.Series([""]).new_from_index(0, rows)
        found.append(
            Batch(
                rids=np.arange(rows), is_chat=np.ones(rows, np.bool_), texts=pl.concat(sides).gather(order),
                owners=np.repeat(np.arange(rows, dtype=np.int32), 2),
                roles=np.tile([USER, ASSISTANT], rows).astype(np.uint8),
                sides=np.zeros(2 * rows, np.uint8), is_learned=np.ones(2 * rows, np.bool_), labels=empty, metas=empty,
                source_rows=np.arange(rows),
            )
        )  # fmt: skip
    return found


def exact(rows: list[Batch]) -> int:
    """How many rows are copies of an earlier one."""
    ordered = np.sort(np.concatenate([row_keys(batch) for batch in rows]))
    return int((ordered[1:] == ordered[:-1]).sum())


def main(verb: str, *paths: str) -> None:
    """Do one part."""
    source = Path(paths[0])
    out = Path(paths[1])
    shutil.rmtree(out, ignore_errors=True)
    if verb == "import":
        import_file(source, source.name, out, ReadOptions(), quiet)
    elif verb == "chain":
        prepare(planned(source, chain()), out, quiet, processes=1)
    elif verb == "standard":
        prepare(planned(source, of_preset("standard")), out, quiet, processes=PROCESSES)
    else:
        from app.datasets.freezing import freeze

        freeze(planned(source, of_preset("standard")), out, quiet, ready=Path(paths[2]), processes=PROCESSES)


if __name__ == "__main__":
    main(*sys.argv[1:])
