"""Rows of a frozen version as test cases: what is asked, and the ideal answer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from app.contracts.conversation import Message
from app.core import storage
from app.core.errors import Invalid

_TEXT_LIMIT = 2_000
_TRAIN_LIMIT = 50_000


@dataclass(frozen=True)
class Case:
    """One test row. For plain text `messages` is empty and `ideal` the text."""

    rid: int
    messages: list[Message]
    ideal: str

    @property
    def prompt(self) -> str:
        """The last question, for people and for the nearest neighbour."""
        return self.messages[-1].content if self.messages else ""


def load(version_id: str, limit: int, seed: int = 7) -> tuple[list[Case], str]:
    """Up to `limit` cases, the same ones each time, and the split they are from.

    The validation split stands in where there is no test split. Raises Invalid when neither has a usable row.
    """
    for split in ("test", "validation"):
        found = _rows(version_id, split)
        if found:
            chosen = np.random.default_rng(seed).permutation(len(found))[:limit]
            return [found[int(place)] for place in sorted(chosen)], split
    raise Invalid("This version has no rows kept for testing. Freeze a version with a test share.")


def training_pairs(version_id: str) -> tuple[list[str], list[str]]:
    """Questions and answers of the training rows, for the baselines."""
    cases = _rows(version_id, "train")[:_TRAIN_LIMIT]
    return [case.prompt for case in cases], [case.ideal for case in cases]


def _rows(version_id: str, split: str) -> list[Case]:
    found: list[Case] = []
    for path in sorted(storage.version_dir(version_id).glob("data-*.parquet")):
        columns = ["_rid", "kind", "messages", "text"]
        for row in pq.read_table(path, columns=columns, filters=[("split", "=", split)]).to_pylist():
            case = _text(row["_rid"], row["text"]) if row["kind"] == "text" else _chat(row["_rid"], row["messages"])
            if case is not None:
                found.append(case)
    return found


def _text(rid: int, text: str | None) -> Case | None:
    return Case(rid, [], text[:_TEXT_LIMIT]) if text and text.strip() else None


def _chat(rid: int, rows: list[dict[str, Any]] | None) -> Case | None:
    """Everything before the last answer is the question. An answer that was rated as bad is no ideal."""
    if rows and rows[-1]["role"] == "assistant" and not rows[-1]["train"]:
        return None
    messages = [Message(role=row["role"], content=row["content"]) for row in rows or []]
    last = next((i for i in range(len(messages) - 1, -1, -1) if messages[i].role == "assistant"), 0)
    if last < 1 or not messages[last].content.strip():
        return None
    return Case(rid, messages[:last], messages[last].content)


def kind_of(cases: list[Case], answers: list[str]) -> str:
    """ "text", "labels" (few distinct short answers cover nearly all rows) or "answers"."""
    if not cases[0].messages:
        return "text"
    pool = [answer.strip() for answer in answers] or [case.ideal.strip() for case in cases]
    distinct = sorted({*pool}, key=pool.count, reverse=True)[:50] if len({*pool}) <= 500 else []
    if not distinct or max(map(len, distinct)) > 60:
        return "answers"
    known = set(distinct)
    share = sum(answer in known for answer in pool) / len(pool)
    return "labels" if share >= 0.9 and len(distinct) * 2 <= len(pool) else "answers"
