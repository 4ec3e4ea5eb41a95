"""The step that finds contradictions: questions that are the same, or nearly, with different answers. It marks only."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from app.contracts.base import Contract
from app.datasets.near.edges import components, edges_of
from app.datasets.near.shingles import keys_and_counts, row_keys
from app.datasets.near.spill import crew, look, workers_for
from app.datasets.near.stars import passing
from app.datasets.near.texts import joined
from app.datasets.steps.batches import strings
from app.datasets.steps.contract import ASSISTANT, MAIN, SYSTEM, TEXT, Batch, Step, Store, Verdict, Words
from app.datasets.steps.near import answer_texts, spilled

QUEUE_FILE = "contradictions.parquet"
CODE = "q.contradiction"


class ContradictionParams(Contract):
    """Questions that are nearly the same with answers that differ."""

    threshold: float = Field(0.8, ge=0.7, le=0.95, title="How alike the questions are", description="0.7 to 0.95")
    most: int = Field(
        20, ge=2, le=200, title="Largest set of answers",
        description="a question asked more often, such as “Write a poem”, wants many answers",
    )  # fmt: skip


def prompt_texts(batch: Batch) -> pa.Array:
    """What is asked in every row: its turns before the last answer, without the system prompt."""
    places = np.arange(len(batch.owners))
    is_main = (batch.sides == MAIN) & (batch.roles != SYSTEM) & (batch.roles != TEXT)
    is_answer = is_main & (batch.roles == ASSISTANT)
    last = np.full(len(batch), len(places))
    last[batch.owners[is_answer]] = places[is_answer]
    last[batch.owners[batch.sides != MAIN]] = len(places)
    return joined(strings(batch.texts), batch.owners, is_main & (places < last[batch.owners]), len(batch))


class _Contradictions:
    """The set runner: the engine of the near copies, over questions."""

    def __init__(self, params: ContradictionParams) -> None:
        self._params = params

    def look(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        prompts = prompt_texts(batch)
        keys, tokens = keys_and_counts(prompts)
        return {**look(prompts), "prompts": keys, "tokens": tokens, "answers": row_keys(answer_texts(batch))}

    def decide(self, store: Store) -> Verdict:
        rows = len(store.rids)
        if rows < 2:
            return Verdict()
        prompts, answers = store.load("prompts"), store.load("answers")
        # Rows that a person kept on purpose ask nobody again.
        is_in = store.is_alive & ~np.isin(store.rids, store.spared(CODE)) & (store.load("tokens") > 0) & (answers != 0)
        with spilled(store) as spill, crew(workers_for(rows)) as work:
            edges = edges_of(spill, work)
        is_near = passing(edges, self._params.threshold) & is_in[edges.a] & is_in[edges.b]
        order = np.lexsort((prompts, ~is_in))[: int(is_in.sum())]
        is_same = prompts[order][1:] == prompts[order][:-1]
        left = np.concatenate([edges.a[is_near], order[:-1][is_same]])
        right = np.concatenate([edges.b[is_near], order[1:][is_same]])
        touched = np.unique(np.concatenate([left, right]))
        found, clusters = self._disputed(components(rows, left, right), touched, answers)
        _keep(store, found, clusters)
        return Verdict(marked={CODE: np.sort(found)})

    def _disputed(
        self, labels: npt.NDArray[np.int32], touched: npt.NDArray[np.int64], answers: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(rows whose question has more than one answer, their cluster)."""
        order = touched[np.argsort(labels[touched], kind="stable")]
        rows, clusters = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
            if 2 <= len(members) <= self._params.most and len(np.unique(answers[members])) > 1:
                rows.append(members)
                clusters.append(np.full(len(members), len(clusters) - 1))
        return np.concatenate(rows), np.concatenate(clusters)


def _keep(store: Store, rows: npt.NDArray[np.int64], clusters: npt.NDArray[np.int64]) -> None:
    """Leave the queue with the working set."""
    if not store.scratch.name:
        return
    folder = store.scratch / "keep"
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"cluster": clusters, "rid": store.rids[rows]})
    pq.write_table(table, folder / QUEUE_FILE, compression="zstd")


CONTRADICTIONS = Step(
    "contradictions", 1, "Contradictions", ContradictionParams, _Contradictions, 8192,
    codes={CODE: "Another row answers the same question differently"},
    words=Words(
        "1 row contradicts another", "%(n)s rows contradict another",
        "The same question with two answers teaches it to guess. You decide which one is right; no row goes by itself.",
        "Put them in a queue", "scale",
    ),
    is_set=True, is_sampled=False, default="ask",
)  # fmt: skip
