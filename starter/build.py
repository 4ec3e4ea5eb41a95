"""Rebuild the starter model from its corpus: `python -m starter.build [--work DIR] [--threads N]`.

1. Corpus and own rows, capped by source, become a frozen dataset version. 2. The engine trains on it, from scratch.
3. Bits per byte are measured on rows held out of each source. 4. The result replaces starter/model.
Started again with the same --work folder it goes on from the last checkpoint. A line of JSON on standard input changes
the run as its page would: {"verb": "adjust", "name": "epochs", "value": 0.8} (`app.contracts.events.Control`).
"""

import argparse
import gzip
import hashlib
import json
import math
import random
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from app.contracts import events as e
from app.contracts.conversation import Example, Message
from app.contracts.recipe import ModelFiles, RecipeSpec, TrainOrder
from starter.own_rows import rows as own_rows
from worker.engine import loading
from worker.engine.control import LineCommands
from worker.engine.data import fit, read_examples
from worker.engine.encoding import Encoder
from worker.engine.loss import summed_loss
from worker.engine.packing import pack
from worker.engine.tokenizer_files import load_chat_template, load_tokenizer
from worker.engine.train import train

HERE = Path(__file__).parent
SEED = 20261121
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("train", pa.bool_())]))
SCHEMA = pa.schema(
    [
        ("_rid", pa.int64()),
        ("split", pa.string()),
        ("kind", pa.string()),
        ("messages", MESSAGES),
        ("text", pa.string()),
        ("meta", pa.string()),
    ]
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("var/starter"), help="folder for the version and the run")
    parser.add_argument("--threads", type=int, help="threads for training (default: all)")
    options = parser.parse_args()
    version = make_version(options.work / "version")
    run_dir = options.work / "run"
    spec = RecipeSpec.model_validate(yaml.safe_load((HERE / "recipe.yaml").read_text(encoding="utf-8")))
    order = TrainOrder(
        run_id="starter",
        attempt_id="build",
        fence=0,
        recipe=spec.model_copy(update={"threads": options.threads}),
        data_dir=str(version),
        out_dir=str(run_dir),
        cache_dir=str(options.work / "tokens"),
    )
    with (options.work / "events.jsonl").open("a", encoding="utf-8") as log:
        for event in train(order, LineCommands(sys.stdin)):
            log.write(event.model_dump_json() + "\n")
            log.flush()
            show(event)
    publish(run_dir / "model", version)


def make_version(folder: Path) -> Path:
    """The frozen dataset version: always the same rows for the same corpus and mixture."""
    if (folder / "manifest.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    mixture = yaml.safe_load((HERE / "mixture.yaml").read_text(encoding="utf-8"))
    rows = [*chat_rows(mixture), *text_rows(mixture)]
    for rid, row in enumerate(rows):
        row["_rid"] = rid
    path = folder / "data-00000.parquet"
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path, compression="zstd")
    manifest = {"rows": len(rows), "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def chat_rows(mixture: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Conversations by source: some held out, then at most `rows`, each `times`."""
    by_source: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)
    for row in read_lines("chats.jsonl.gz"):
        source = "glossary" if row["source"].startswith("openstax") else row["source"]
        by_source[source].append([{**message, "train": True} for message in row["messages"]])
    for question, answer in own_rows():
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        by_source["own"].append([{**turn, "train": True} for turn in turns])
    for source, (count, times) in mixture["chats"].items():
        chats = shuffled(by_source[source])
        held_out = mixture["held_out_rows"]
        for messages in chats[:held_out]:
            yield chat(messages, source, "validation")
        for messages in chats[held_out : held_out + count] * times:
            yield chat(messages, source, "train")


def text_rows(mixture: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Plain texts by source: some held out (their first 2 000 characters), then up to `characters`."""
    by_source: dict[str, list[str]] = defaultdict(list)
    for row in read_lines("text.jsonl.gz"):
        by_source[row["source"].split("/")[0]].append(row["text"])
    for source, characters in mixture["text"].items():
        texts, left = shuffled(by_source[source]), characters
        held_out = mixture["held_out_rows"]
        for text in texts[:held_out]:
            yield plain(text[:2000], source, "validation")
        for text in texts[held_out:]:
            if left <= 0:
                break
            left -= len(text)
            yield plain(text, source, "train")


def chat(messages: list[dict[str, Any]], source: str, split: str) -> dict[str, Any]:
    meta = json.dumps({"source": source})
    return {"split": split, "kind": "chat", "messages": messages, "text": "", "meta": meta}


def plain(text: str, source: str, split: str) -> dict[str, Any]:
    meta = json.dumps({"source": f"{source} (text)"})
    return {"split": split, "kind": "text", "messages": [], "text": text, "meta": meta}


def read_lines(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(HERE / "corpus" / name, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def shuffled(items: list[Any]) -> list[Any]:
    return random.Random(SEED).sample(items, len(items))


def bits_per_byte(model_dir: Path, version: Path) -> dict[str, float]:
    """Bits per byte of content, by source, over the held-out rows (every token of them is predicted)."""
    model = loading.load_model(ModelFiles(base_dir=str(model_dir)), torch.float32)
    tokenizer = load_tokenizer(model_dir)
    end = tokenizer.get_vocab(with_added_tokens=True)["<|endoftext|>"]
    encoder = Encoder(tokenizer, load_chat_template(model_dir, tokenizer), end, learn_prompts=True)
    meta = pq.read_table(version / "data-00000.parquet", columns=["split", "meta"]).to_pylist()
    sources = [json.loads(row["meta"])["source"] for row in meta if row["split"] == "validation"]
    nats: dict[str, float] = defaultdict(float)
    size: dict[str, int] = defaultdict(int)
    for source, row in zip(sources, read_examples(version, "validation"), strict=True):
        pieces, _ = fit(row, encoder.example, 512)
        if not pieces:
            continue
        with torch.no_grad():
            for ids, learn in pieces:
                loss, _ = summed_loss(model, pack([(np.asarray(ids), np.asarray(learn))], torch.device("cpu")))
                nats[source] += float(loss)
        size[source] += content_bytes(row)
    return {source: round(nats[source] / math.log(2) / size[source], 3) for source in nats}


def content_bytes(row: Example) -> int:
    messages: list[Message] = row.messages
    return len(row.text.encode()) if row.kind == "text" else sum(len(m.content.encode()) for m in messages)


def publish(model: Path, version: Path) -> None:
    """Measure, write measurements beside the weights, and put the model in its place."""
    figures = bits_per_byte(model, version)
    target = HERE / "model"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(model, target)
    (HERE / "measurements.json").write_text(json.dumps({"bits_per_byte": figures}, indent=2) + "\n", encoding="utf-8")
    for source, value in figures.items():
        print(f"{source:32} {value:.3f} bits per byte")


def show(event: e.EngineEvent) -> None:
    """One line for what a person watching wants to see."""
    if isinstance(event, e.Step) and event.step % 20 == 0:
        speed = event.tokens / event.step_s
        print(f"step {event.step} loss {event.loss:.3f} {speed:.0f} tokens/s", flush=True)
    elif not isinstance(event, e.Step):
        print(event.model_dump_json(exclude_defaults=True), flush=True)


if __name__ == "__main__":
    main()
