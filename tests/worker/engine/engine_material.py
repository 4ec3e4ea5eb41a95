"""What the engine's tests share: how a version is written, the tiny recipes, commands by script, one whole attempt."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from app.contracts.events import Control, EngineEvent
from app.contracts.recipe import TrainOrder
from worker.engine.train import train

torch.set_num_threads(1)
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("train", pa.bool_())]))
SCHEMA = pa.schema(
    [
        ("_rid", pa.int64()),
        ("split", pa.string()),
        ("kind", pa.string()),
        ("messages", MESSAGES),
        ("text", pa.string()),
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("meta", pa.string()),
    ]
)
COLOURS = ["red", "green", "blue", "black", "white", "yellow"]
THINGS = ["apple", "house", "river", "stone", "bird", "cloud", "shirt", "door", "lamp", "boat"]


class Script:
    """Commands given before chosen steps: `Script({3: Control(verb="pause")})` pauses after step 3."""

    def __init__(self, at: dict[int, Control] | None = None) -> None:
        self.at, self.asked = at or {}, 0

    def next(self) -> Control | None:
        command = self.at.pop(self.asked, None)
        if command is None:
            self.asked += 1
        return command


def write_version(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A frozen version as the datasets slice writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"kind": "chat", "messages": [], "text": "", "chosen": [], "rejected": [], "meta": "{}", "split": "train"}
    table = pa.Table.from_pylist([{**plain, "_rid": i, **row} for i, row in enumerate(rows)], SCHEMA)
    pq.write_table(table, folder / "data-00000.parquet")
    (folder / "manifest.json").write_text(json.dumps({"rows": len(rows)}), encoding="utf-8")
    return folder


def turns(*contents: str) -> list[dict[str, Any]]:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content, "train": True} for i, content in enumerate(contents)]


TINY: dict[str, Any] = {
    "base_source": "folder",
    "base_ref": "tiny",
    "batch_size": 8,
    "micro_batch_size": 4,
    "max_length_tokens": 64,
    "learning_rate": 5e-3,
    "warmup_steps": 2,
    "epochs": 2,
    "evaluate_every_steps": 4,
    "precision": "fp32",
    "threads": 1,
    "sample_max_tokens": 8,
}
SCRATCH: dict[str, Any] = {
    "method": "scratch",
    "base_source": "scratch",
    "base_ref": None,
    "optimizer": "muon",
    "scratch": {"layers": 2, "heads": 2, "width": 32, "context_length": 64, "vocabulary_size": 400, "dropout": 0.1},
}


def run(order: TrainOrder, at: dict[int, Control] | None = None) -> list[EngineEvent]:
    """All events of one attempt."""
    return list(train(order, Script(at)))


def of(events: list[EngineEvent], kind: str) -> list[Any]:
    """The events of one type."""
    return [event for event in events if event.type == kind]
