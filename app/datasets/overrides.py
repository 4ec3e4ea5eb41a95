"""Overrides: rows that a person told a step to leave alone, known by a hash of what is in them."""

import re

import numpy as np
import numpy.typing as npt
import xxhash

from app.datasets.plan import Override
from app.datasets.steps.batches import examples_of
from app.datasets.steps.contract import Batch, Changes, Example, Indexes
from app.datasets.steps.copies import all_turns, content_key

Keys = npt.NDArray[np.uint64]
_NUMBERS = re.compile(r"\d+")
_WORDLESS = re.compile(r"[\W_]+")


def like_key(example: Example) -> int:
    """64-bit xxh3 of what rows of one kind share: their words, without capitals, signs and numbers."""
    texts = [m["content"] for m in all_turns(example)] if example["kind"] == "chat" else [example["text"]]
    words = [_WORDLESS.sub(" ", _NUMBERS.sub("0", text.casefold())).strip() for text in texts]
    return xxhash.xxh3_64_intdigest("\x1f".join(words).encode("utf-8", "surrogatepass"))


def content_keys(batch: Batch, scope: str) -> Keys:
    """The key of each row as it was mapped, before any step: of the row itself, or of rows like it."""
    key_of = content_key if scope == "row" else like_key
    return np.array([key_of(example) for example in examples_of(batch)], np.uint64)


class Exempt:
    """Which rows of a batch a step must leave alone. Made from the batch as it was mapped."""

    def __init__(self, overrides: list[Override], batch: Batch, is_kept: npt.NDArray[np.bool_] | None = None) -> None:
        """`is_kept`: rows that no step may take out, because a person marked them so."""
        self._overrides = overrides
        scopes = {o.scope for o in overrides if o.scope != "code"}
        self._keys = {scope: content_keys(batch, scope) for scope in scopes}
        self.is_kept = np.zeros(len(batch), np.bool_) if is_kept is None else is_kept

    @property
    def is_any(self) -> bool:
        """Whether any row or reason is exempt."""
        return bool(self._overrides) or bool(self.is_kept.any())

    def keep(self, is_left: npt.NDArray[np.bool_]) -> None:
        """Follow the batch when rows leave it."""
        self._keys = {scope: keys[is_left] for scope, keys in self._keys.items()}
        self.is_kept = self.is_kept[is_left]

    def rows(self, step: str, code: str, number: int) -> npt.NDArray[np.bool_]:
        """Mask of the rows that `step` must leave alone for the reason `code` ("": for any)."""
        found = np.zeros(number, np.bool_)
        for override in self._overrides:
            if override.step != step or override.code not in ("", code):
                continue
            if override.scope == "code":
                found[:] = True
            elif override.scope in self._keys:
                found |= self._keys[override.scope] == np.uint64(int(override.key or "0", 16))
        return found

    def spared(self, step: str, batch: Batch, changes: Changes) -> Changes:
        """The changes without those that a person does not want. Texts count as changed for all reasons at once."""
        if not any(o.step == step for o in self._overrides):
            return changes
        number = len(batch)

        def wanted(code: str, rows: Indexes) -> Indexes:
            rows = np.asarray(rows, np.int64)
            return rows[~self.rows(step, code, number)[rows]]

        left_alone = self.rows(step, "", number)
        for code, rows in changes.codes.items():
            mask = self.rows(step, code, number)
            left_alone |= mask & np.isin(np.arange(number), rows)
        changes.codes = {code: wanted(code, np.asarray(rows)) for code, rows in changes.codes.items()}
        changes.removed = {code: wanted(code, np.asarray(rows)) for code, rows in changes.removed.items()}
        for name, owners in (("texts", batch.owners), ("labels", np.arange(number)), ("metas", np.arange(number))):
            indexes, new = getattr(changes, name)
            kept = [i for i, index in enumerate(indexes) if not left_alone[owners[int(index)]]]
            setattr(changes, name, ([int(indexes[i]) for i in kept], [new[i] for i in kept]))
        changes.dropped = [int(text) for text in changes.dropped if not left_alone[batch.owners[int(text)]]]
        changes.cuts = {row: cuts for row, cuts in changes.cuts.items() if not left_alone[row]}
        changes.spans = [span for span in changes.spans if not left_alone[batch.owners[span.text]]]
        return changes
