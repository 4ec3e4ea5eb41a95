"""What a frozen version holds, as far as presets and estimates need to know it: rows and their lengths in tokens."""

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel
from tokenizers import Tokenizer

from app.core import storage

_SAMPLE_ROWS = 400
# Texts up to this size in all are counted by the tokenizer itself (0.2 s); more are judged by characters a token.
_EXACT_CHARACTERS = 500_000
# Characters a token before the tokenizer exists: BPE of 4,096 pieces on English text (measured: 3.3 to 3.7).
CHARACTERS_PER_TOKEN = 3.5
# Markers that a chat template adds around one message.
TURN_TOKENS = 4


class Material(BaseModel):
    """Rows by split and the length of a training row, in tokens. `labels` counts distinct short answers.

    `sampled_tokens` are the lengths of a sample of training rows, all of them where they are few.
    """

    kind: str
    train_rows: int
    validation_rows: int
    test_rows: int
    mean_tokens: float
    p95_tokens: int
    longest_tokens: int
    characters: int
    labels: int = 0
    sampled_tokens: tuple[float, ...] = ()

    def sequences(self, max_length_tokens: int) -> int:
        """What a pass reads: conversations whole, plain texts in windows that overlap by one token (and end in one)."""
        if self.kind != "text":
            return max(1, self.train_rows)
        lengths = self.sampled_tokens or (self.mean_tokens,)
        windows = sum(max(1, math.ceil(length / max(1, max_length_tokens - 1) - 1e-9)) for length in lengths)
        return max(1, self.train_rows, round(windows * self.train_rows / len(lengths)))

    @property
    def tokens(self) -> int:
        """Tokens of one pass over the training rows."""
        return max(1, round(self.mean_tokens * self.train_rows))


def _sampled_rows(version_id: str) -> Iterator[dict[str, Any]]:
    """Up to 400 training rows a file, spread over it."""
    for path in sorted(storage.version_dir(version_id).glob("data-*.parquet")):
        table = pq.read_table(path, columns=["messages", "text"], filters=[("split", "=", "train")])
        stride = max(1, math.ceil(table.num_rows / _SAMPLE_ROWS))
        yield from table.take(list(range(0, table.num_rows, stride))).to_pylist()


@lru_cache(maxsize=64)
def _sample(version_id: str) -> tuple[tuple[int, int, str], ...]:
    """(characters, messages, last answer if short) of the sampled training rows."""
    rows: list[tuple[int, int, str]] = []
    for row in _sampled_rows(version_id):
        messages = row["messages"] or []
        size = sum(len(m["content"]) for m in messages) + len(row["text"] or "")
        answer = messages[-1]["content"] if messages else ""
        rows.append((size, len(messages), answer if len(answer) <= 60 else ""))
    return tuple(rows)


@lru_cache(maxsize=64)
def _text_tokens(version_id: str, tokenizer_file: str) -> tuple[int, ...]:
    """Tokens of each sampled text, by the base model's own tokenizer."""
    tokenizer = Tokenizer.from_file(tokenizer_file)
    tokenizer.encode_special_tokens = True  # as the engine reads them: typed markers stay text
    texts = [row["text"] or "" for row in _sampled_rows(version_id)]
    return tuple(len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False))


@lru_cache(maxsize=64)
def characters_per_token(version_id: str, tokenizer_file: str) -> float:
    """Measured on 60 rows with the base model's own tokenizer."""
    tokenizer = Tokenizer.from_file(tokenizer_file)
    texts: list[str] = []
    for path in sorted(storage.version_dir(version_id).glob("data-*.parquet"))[:1]:
        table = pq.read_table(path, columns=["messages", "text"]).slice(0, 60)
        for row in table.to_pylist():
            texts += [m["content"][:4000] for m in row["messages"] or []] + [(row["text"] or "")[:4000]]
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False))
    return max(0.5, sum(map(len, texts)) / max(1, tokens))


@lru_cache(maxsize=64)
def character_count(version_id: str) -> int:
    """Distinct characters of the sampled training text: the vocabulary of a character tokenizer."""
    seen: set[str] = set()
    for path in sorted(storage.version_dir(version_id).glob("data-*.parquet")):
        table = pq.read_table(path, columns=["messages", "text"], filters=[("split", "=", "train")])
        stride = max(1, table.num_rows // _SAMPLE_ROWS)
        for row in table.take(list(range(0, table.num_rows, stride))).to_pylist():
            seen.update(row["text"] or "")
            for message in row["messages"] or []:
                seen.update(message["content"])
    return len(seen)


@lru_cache(maxsize=64)
def _pairs(version_id: str) -> dict[str, int]:
    """Rows with a preferred and a rejected answer, by split."""
    found: dict[str, int] = {}
    for path in sorted(storage.version_dir(version_id).glob("data-*.parquet")):
        if not {"chosen", "rejected"} <= set(pq.read_schema(path).names):
            continue
        table = pq.read_table(path, columns=["split", "chosen", "rejected"])
        both = pc.and_(*(pc.greater(pc.list_value_length(table[name]), 0) for name in ("chosen", "rejected")))
        for split in table["split"].filter(pc.fill_null(both, False)).to_pylist():
            found[split] = found.get(split, 0) + 1
    return found


def of_preferences(version_id: str, material: Material) -> Material:
    """The facts of a version's preferences: each is read with both of its answers, twice as many tokens."""
    rows = _pairs(version_id)
    return material.model_copy(
        update={
            "train_rows": rows.get("train", 0),
            "validation_rows": rows.get("validation", 0),
            "mean_tokens": 2 * material.mean_tokens,
            "p95_tokens": 2 * material.p95_tokens,
            "sampled_tokens": tuple(2 * length for length in material.sampled_tokens),
        }
    )


def measure(
    version_id: str,
    *,
    kind: str,
    train_rows: int,
    validation_rows: int,
    test_rows: int,
    tokenizer_file: Path | None = None,
    per_token: float = CHARACTERS_PER_TOKEN,
    prefix_characters: int = 0,
) -> Material:
    """Facts of a frozen version for a base model with this tokenizer, or with `per_token` characters a token.

    `prefix_characters` stand before every conversation: the objective, where it is read to the model.
    """
    rows = _sample(version_id)
    ratio = characters_per_token(version_id, str(tokenizer_file)) if tokenizer_file else per_token
    prefix = prefix_characters / ratio + TURN_TOKENS if prefix_characters and kind == "chat" else 0.0
    lengths = np.array([prefix + size / ratio + turns * TURN_TOKENS for size, turns, _ in rows] or [1.0])
    if kind == "text" and tokenizer_file and rows and sum(size for size, _, _ in rows) <= _EXACT_CHARACTERS:
        lengths = np.array(_text_tokens(version_id, str(tokenizer_file)), np.float64)
    answers = [answer for _, _, answer in rows if answer]
    distinct = len(set(answers))
    is_labelled = len(answers) >= 0.9 * len(rows) and 1 < distinct <= 100 and distinct <= len(answers) / 3
    return Material(
        kind=kind,
        train_rows=train_rows,
        validation_rows=validation_rows,
        test_rows=test_rows,
        mean_tokens=float(lengths.mean()),
        p95_tokens=int(np.percentile(lengths, 95)),
        longest_tokens=int(lengths.max()),
        characters=round(float(np.mean([row[0] for row in rows] or [0])) * train_rows),
        labels=distinct if is_labelled else 0,
        sampled_tokens=tuple(lengths.tolist()),
    )
