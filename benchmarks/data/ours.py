"""Our side of the data benchmark, one part a process: `python -m benchmarks.data.ours VERB PATH…`."""

import shutil
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from app.datasets.columnar import mapped
from app.datasets.mapping import Mapping
from app.datasets.plan import Plan, PlannedFile
from app.datasets.preparing import prepare
from app.datasets.steps.batches import of_table, table_of
from app.datasets.steps.catalogue import STEPS, of_preset
from app.datasets.steps.contract import BATCH_ROWS, ChosenStep, Indexes
from app.datasets.steps.copies import EXACT, Keys
from app.datasets.tables import EXAMPLES, ROW, count, parts

CHAIN = ("unicode", "markup", "whitespace", "length", "personal")
PROCESSES = 2


def quiet(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


def planned_mapping() -> Mapping:
    """A question and an answer a row."""
    return Mapping(prompt="{question}", answer="{answer}")


def planned(rows: Path, steps: list[ChosenStep]) -> Plan:
    """A plan of one imported file of questions and answers."""
    file = PlannedFile(
        file_id="made", filename="made.jsonl", sha256="0" * 64, rows=count(parts(rows)), rows_dir=str(rows),
        mapping=planned_mapping(),
    )  # fmt: skip
    return Plan(files=[file], steps=steps)


def chain(others: Literal["off", "tried"] = "off") -> list[ChosenStep]:
    """The steps of the cleaning chain. Ours looks for nine kinds of personal data, the peers for two.

    A step that a plan does not name is tried after the chain, so that the page can say what it would do: near copies,
    languages and the like, which are no part of the chain. "off" says that a person wants none of them.
    """
    named = [ChosenStep(name=name, version=STEPS[name].version) for name in CHAIN]
    rest = [name for name in STEPS if name not in CHAIN] if others == "off" else []
    return [*named, *(ChosenStep(name=name, version=STEPS[name].version, mode="off") for name in rest)]


def working_set(table: pa.Table) -> list[pa.Table]:
    """Questions and answers as the product holds rows in memory: the parts of a working set, read from its files."""
    mapping = planned_mapping()
    cells = pa.Table.from_arrays(
        [pa.array(range(table.num_rows), pa.int64()), *table.select(["question", "answer"]).columns],
        names=[ROW, "c_question", "c_answer"],
    )
    firsts = range(0, table.num_rows, BATCH_ROWS)
    found = [mapped(cells.slice(first, BATCH_ROWS), mapping, "made", first).batch for first in firsts]
    return [table_of(batch, EXAMPLES) for batch in found]


class _Store:
    """What the step left of every part, as `contract.Store` gives it."""

    def __init__(self, rids: list[Indexes], keys: list[Keys]) -> None:
        self.rids = np.concatenate(rids)
        self.is_alive, self.scratch = np.ones(len(self.rids), np.bool_), Path()
        self._keys = np.concatenate(keys)

    def load(self, _name: str) -> Keys:
        return self._keys


def exact(rows: list[pa.Table]) -> int:
    """The step of exact copies, whole: from the tables to the rids that go, each with its twin. How many go."""
    step = EXACT.start(EXACT.params())
    batches = [of_table(part) for part in rows]
    store = _Store([batch.rids for batch in batches], [step.look(batch)["key"] for batch in batches])
    removal = step.decide(store).removals[0]
    assert removal.of is not None
    return len(store.rids[removal.rows])


def main(verb: str, *paths: str) -> None:
    """Do one part."""
    source = Path(paths[0])
    out = Path(paths[1])
    shutil.rmtree(out, ignore_errors=True)
    if verb == "import":
        from app.datasets.importing import import_file
        from app.datasets.options import ReadOptions

        import_file(source, source.name, out, ReadOptions(), quiet)
    elif verb == "chain":
        prepare(planned(source, chain()), out, quiet, processes=1)
    elif verb == "chain-and-trials":
        prepare(planned(source, chain("tried")), out, quiet, processes=1)
    elif verb == "standard":
        prepare(planned(source, of_preset("standard")), out, quiet, processes=PROCESSES)
    else:
        from app.datasets.freezing import freeze

        freeze(planned(source, of_preset("standard")), out, quiet, ready=Path(paths[2]), processes=PROCESSES)


if __name__ == "__main__":
    main(*sys.argv[1:])
