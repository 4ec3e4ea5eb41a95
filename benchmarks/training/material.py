"""What every trainer of `training_throughput.py` gets: random models in two shapes, and the same seeded rows.

Rows are conversations of one question and one answer. A token is about a letter, lengths spread as instructions do
(log-normal, 24 to 512 tokens, mean about 150, of which about two thirds are the answer's).
"""

import json
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("train", pa.bool_())]))
SCHEMA = pa.schema(
    [
        ("_rid", pa.int64()), ("split", pa.string()), ("kind", pa.string()), ("messages", MESSAGES),
        ("text", pa.string()), ("meta", pa.string()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A Llama-shaped model."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int


SHAPES = {
    "15M": Shape(288, 6, 6, 6, 768, 32_000),
    "135M": Shape(576, 30, 9, 3, 1536, 49_152),
    "6M": Shape(256, 6, 4, 4, 704, 4_096),
    "deep": Shape(192, 30, 3, 3, 512, 8_192),
    "tiny": Shape(64, 5, 2, 2, 128, 512),
}


def base_model(folder: Path, name: str) -> Path:
    """Random weights of a shape, in bf16, with a tokenizer smaller than its vocabulary; made once."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from app.text.template import CHATML
    from worker.engine import tokenizer

    if (folder / "config.json").is_file():
        return folder
    shape = SHAPES[name]
    words = tokenizer.train_bpe(["the parcel is on its way to the office and will be there by noon "] * 50, 400)
    tokenizer.save(words, folder, chat_template=CHATML, context_length=1024)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=3,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def conversations(count: int) -> list[list[dict[str, Any]]]:
    """Questions and answers of random letters."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(count):
        total = int(np.clip(generator.lognormal(4.85, 0.55), 24, 500))
        asked = max(4, int(total * generator.uniform(0.15, 0.5)))
        texts = ["".join(chr(c) for c in generator.integers(97, 122, n)) for n in (asked, max(4, total - asked))]
        found.append(turns(*texts))
    return found


def write_version(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A frozen dataset version."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"kind": "chat", "messages": [], "text": "", "meta": "{}", "split": "train"}
    table = pa.Table.from_pylist([{**plain, "_rid": i, **row} for i, row in enumerate(rows)], SCHEMA)
    pq.write_table(table, folder / "data-00000.parquet")
    (folder / "manifest.json").write_text(json.dumps({"rows": len(rows)}), encoding="utf-8")
    return folder


def turns(*texts: str) -> list[dict[str, Any]]:
    """User and assistant in turn."""
    return [
        {"role": role, "content": text, "train": True}
        for role, text in zip(cycle(("user", "assistant")), texts, strict=False)
    ]


def version_of(folder: Path, count: int) -> Path:
    """A version of so many conversations; made once."""
    if (folder / "manifest.json").is_file():
        return folder
    return write_version(folder, [{"messages": turns} for turns in conversations(count)])


def peer_rows(path: Path, base: Path, version: Path, cache: Path, seed: int) -> Path:
    """The rows as token ids and labels, one JSON object a line, in the order of our first pass."""
    from app.contracts.conversation import Example
    from worker.engine.data import order, tokenised
    from worker.engine.encoding import Encoder
    from worker.engine.tokenizer_files import load_chat_template, load_tokenizer

    def end(ids: dict[str, int]) -> int:
        return ids.get("<|endoftext|>", 2)

    words = load_tokenizer(base)
    template = load_chat_template(base, words)
    encoder = Encoder(words, template, end(words.get_vocab(with_added_tokens=True)), False, "")

    def encode(row: Example) -> tuple[list[int], list[bool]]:
        return encoder.example(row)

    rows = tokenised(version, "train", cache, encode, {"for": "peers"}, 1024)
    with path.open("w", encoding="utf-8") as out:
        for number in order(rows, seed, 0):
            ids, learn = rows.row(int(number))
            labels = [int(i) if wanted else -100 for i, wanted in zip(ids, learn, strict=True)]
            out.write(json.dumps({"input_ids": ids.tolist(), "labels": labels}) + "\n")
    return path
