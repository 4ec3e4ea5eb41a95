"""The step that finds personal data and secrets and does with each kind what the person chose."""

from typing import Any

import numpy as np
import orjson

from app.datasets.steps.contract import Batch, Changes, RowRunner, Span, Step, Words
from app.datasets.steps.personal import CODES, PersonalParams, Replacing, found

# What is written in place of a find is found by nobody: one round would do, a second proves it.
ROUNDS = 3


def _settled(state: Replacing, text: str) -> str:
    for _ in range(ROUNDS):
        spans = found([text]).get(0, [])
        new = state.rewrite(text, spans) if spans else text
        if new == text:
            break
        text = new
    return text


def _cleaned(state: Replacing, value: Any) -> Any:
    """A value of the columns that travel with a row: texts rewritten; a number only where it is one of the finds."""
    if isinstance(value, str):
        return _settled(state, value)
    if isinstance(value, list):
        return [_cleaned(state, item) for item in value]
    if isinstance(value, dict):
        return {key: _cleaned(state, item) for key, item in value.items()}
    if isinstance(value, int) and not isinstance(value, bool) and found([str(value)]):
        return _settled(state, str(value))
    return value


def _personal(params: PersonalParams) -> RowRunner:
    salt = bytes.fromhex(params.salt) if params.salt else b"no project"

    def run(batch: Batch) -> Changes:
        changes = Changes()
        in_texts, in_labels, in_metas = found(batch.texts), found(batch.labels), found(batch.metas)
        rows = sorted({int(batch.owners[place]) for place in in_texts} | set(in_labels) | set(in_metas))
        starts = batch.starts()
        turns = {row: range(int(starts[row]), int(starts[row + 1])) for row in rows}
        used = [place for row in rows for place in turns[row]]
        old = dict(zip(used, batch.texts.gather(used).to_list(), strict=True))
        states: dict[int, Replacing] = {}
        texts: dict[int, str] = {}
        labels: dict[int, str] = {}
        metas: dict[int, str] = {}
        for row in rows:
            state = states[row] = Replacing(params, salt, [old[place] for place in turns[row]])
            for place in turns[row]:
                if place in in_texts and (new := state.rewrite(old[place], in_texts[place])) != old[place]:
                    texts[place] = new
            if row in in_labels:
                new = state.rewrite(batch.labels[row], in_labels[row])
                if new != batch.labels[row]:
                    labels[row] = new
            if row in in_metas:
                columns = orjson.loads(batch.metas[row])
                cleaned = _cleaned(state, columns)
                if cleaned != columns:
                    metas[row] = orjson.dumps(cleaned).decode()
        again = list(texts)
        for _ in range(ROUNDS):
            finds = found([texts[place] for place in again])
            again = [again[number] for number in finds]
            for place, spans in zip(again, finds.values(), strict=True):
                texts[place] = states[int(batch.owners[place])].rewrite(texts[place], spans)
            if not again:
                break
        codes: dict[str, list[int]] = {}
        for row, state in states.items():
            for code in state.codes:
                codes.setdefault(code, []).append(row)
        out = [row for row, state in states.items() if state.is_out]
        changes.texts = (list(texts), list(texts.values()))
        changes.labels = (list(labels), list(labels.values()))
        changes.metas = (list(metas), list(metas.values()))
        changes.codes = dict(codes)
        changes.removed = {"out.pii": np.array(out, np.int64)}
        changes.spans = [Span(place, s.kind, s.start, s.end) for place, spans in in_texts.items() for s in spans]
        return changes

    return run


PERSONAL = Step(
    "personal", 1, "Personal data and secrets", PersonalParams, _personal, 512,
    codes=CODES,
    words=Words(
        "1 row contains personal data or secrets", "%(n)s rows contain personal data or secrets",
        "A model can repeat what it was shown. Within a row, the same value gets the same name.",
        "Replace them", "shield-check",
    ),
    default="ask",
)  # fmt: skip
