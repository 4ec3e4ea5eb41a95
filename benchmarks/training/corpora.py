"""Text for models from scratch, once as nanoGPT reads it and once as a frozen version; the same tokens for both."""

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from app.contracts.recipe import ScratchSpec
from app.text.template import CHATML
from benchmarks.training.material import write_version
from worker.engine import tokenizer as tokenizers

Three = tuple[Path, Path, Path]
CORPUS_CHARACTERS = 12_000_000


def characters(folder: Path, path: Path) -> Three:
    """(nanoGPT's data, version, tokenizer) of a text by characters; the last tenth is for validation, as in nanoGPT."""
    text = path.read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    spec = ScratchSpec(tokenizer="characters")
    return _written(folder, [text[:cut]], [text[cut:]], spec, 64)


def corpus(folder: Path, path: Path) -> Three:
    """The same of the first texts of a corpus of JSON lines, drawn with a seed; every fiftieth is for validation."""
    with gzip.open(path / "text.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [str(json.loads(line)["text"]) for line in lines]
    chosen, size = [], 0
    for number in np.random.default_rng(0).permutation(len(texts)):
        if size > CORPUS_CHARACTERS:
            break
        chosen.append(texts[number])
        size += len(texts[number])
    train = [text for number, text in enumerate(chosen) if number % 50]
    spec = ScratchSpec(vocabulary_size=4096)
    return _written(folder, train, chosen[::50], spec, 256)


def _written(folder: Path, train: list[str], validation: list[str], spec: ScratchSpec, context: int) -> Three:
    data, version, words = folder / "nanogpt", folder / "version", folder / "tokenizer"
    if (folder / "made").is_file():
        return data, version, words
    data.mkdir(parents=True, exist_ok=True)
    learned = tokenizers.train(spec, tokenizers.batched(iter(train)))
    tokenizers.save(learned, words, chat_template=CHATML, context_length=context)
    whole = Tokenizer.from_file(str(words / "tokenizer.json"))
    end = whole.token_to_id(tokenizers.END_OF_TEXT)
    for name, texts in (("train", train), ("val", validation)):
        ids = [
            part for text in texts for part in (np.array(whole.encode(text).ids, np.uint16), np.array([end], np.uint16))
        ]
        np.concatenate(ids).astype(np.uint16).tofile(data / f"{name}.bin")
    with (data / "meta.pkl").open("wb") as out:
        pickle.dump({"vocab_size": whole.get_vocab_size()}, out)
    rows: list[dict[str, Any]] = [{"kind": "text", "text": text} for text in train]
    rows += [{"kind": "text", "text": text, "split": "validation"} for text in validation]
    write_version(version, rows)
    (folder / "made").touch()
    return data, version, words
