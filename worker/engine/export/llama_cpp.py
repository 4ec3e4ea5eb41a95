"""The written GGUF file asked through llama.cpp, where the package that carries it is installed (xllamacpp).

It runs in a process of its own: what native code does with a file, crashing or never ending, does not end the export.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from app.contracts.export import Check
from worker.engine.errors import BadData
from worker.engine.export.folders import compare
from worker.engine.export.source import Source

PACKAGE = "xllamacpp"
ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 900


@dataclass(frozen=True)
class Asked:
    """A prompt as ids, its text where the text gives the same ids, and how many greedy tokens are wanted behind it."""

    ids: list[int]
    text: str | None
    count: int


@dataclass(frozen=True)
class Said:
    """llama.cpp's own ids of the text (None without one) and its greedy tokens behind the prompt."""

    ids: list[int] | None
    tokens: list[int]


def is_installed() -> bool:
    """Whether llama.cpp can be asked here."""
    return find_spec(PACKAGE) is not None


def ask(path: Path, source: Source) -> Check:
    """The file's own tokens and greedy answers beside the model's.

    Raises BadData when llama.cpp reads a question differently, when most answers differ from their first token, or when
    it does not answer at all.
    """
    asked = []
    for ids, ours in zip(source.prompts, source.answers, strict=True):
        text = source.tokenizer.decode(ids, skip_special_tokens=False)
        is_same = source.tokenizer.encode(text, add_special_tokens=False).ids == ids
        asked.append(Asked(ids, text if is_same else None, len(ours)))
    said = []
    for question, ours, heard in zip(asked, source.answers, answers(path, source.context_length, asked), strict=True):
        if heard.ids is not None and heard.ids != question.ids:
            raise BadData("llama.cpp reads the questions differently from your model. Export the whole folder instead.")
        # It stops before an end token, we behind it.
        ended = len(ours) > 0 and ours[-1] in source.end_ids and heard.tokens == ours[:-1]
        said.append(ours if ended else heard.tokens)
    check = compare(f"llama.cpp (xllamacpp {version(PACKAGE)})", source.answers, said)
    begun = sum(a[:1] == b[:1] for a, b in zip(source.answers, said, strict=True))
    if begun * 2 < len(said):
        raise BadData(
            f"In llama.cpp only {begun} of {len(said)} answers begin as your model's do. Nothing was exported."
        )
    return check


def answers(path: Path, context_length: int, asked: list[Asked], patience_s: float = PATIENCE_S) -> list[Said]:
    """What llama.cpp says to each prompt, one after another. Raises BadData when it does not, or not in time."""
    order = {"path": str(path), "context_length": context_length, "asked": [vars(one) for one in asked]}
    command = [sys.executable, "-m", "worker.engine.export.llama_cpp_server", "--parent", str(os.getpid())]
    try:
        done = subprocess.run(
            command, input=json.dumps(order).encode(), stdout=subprocess.PIPE, cwd=ROOT, timeout=patience_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BadData(
            f"llama.cpp did not answer the file within {patience_s / 60:.0f} minutes. Nothing was exported."
        ) from error
    if done.returncode:
        raise BadData("llama.cpp could not open the file. Nothing was exported; the worker's log says more.")
    return [Said(**one) for one in json.loads(done.stdout)]
