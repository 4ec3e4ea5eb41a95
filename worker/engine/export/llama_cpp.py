"""The written GGUF file asked through llama.cpp, where the package that carries it is installed (xllamacpp)."""

import json
import secrets
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from app.contracts.export import Check
from worker.engine.errors import BadData
from worker.engine.export.folders import compare
from worker.engine.export.source import Source

PACKAGE = "xllamacpp"
PATIENCE_S = 600


def is_installed() -> bool:
    """Whether llama.cpp can be asked here."""
    return find_spec(PACKAGE) is not None


def ask(path: Path, source: Source) -> Check:
    """The file's own tokens and greedy answers beside the model's.

    Raises BadData when llama.cpp reads a question differently, or when most answers differ from their first token.
    """
    server = _Server(path, source.context_length)
    said = []
    for ids, ours in zip(source.prompts, source.answers, strict=True):
        text = source.tokenizer.decode(ids, skip_special_tokens=False)
        if source.tokenizer.encode(text, add_special_tokens=False).ids == ids and server.tokens(text) != ids:
            raise BadData("llama.cpp reads the questions differently from your model. Export the whole folder instead.")
        found = server.answer(ids, len(ours))
        # It stops before an end token, we behind it.
        ended = len(ours) > 0 and ours[-1] in source.end_ids and found == ours[:-1]
        said.append(ours if ended else found)
    check = compare(f"llama.cpp (xllamacpp {version(PACKAGE)})", source.answers, said)
    begun = sum(a[:1] == b[:1] for a, b in zip(source.answers, said, strict=True))
    if begun * 2 < len(said):
        raise BadData(
            f"In llama.cpp only {begun} of {len(said)} answers begin as your model's do. Nothing was exported."
        )
    return check


class _Server:
    """llama.cpp's own server, on this machine's loopback and behind a key, for as long as this process lives."""

    def __init__(self, path: Path, context_length: int) -> None:
        import xllamacpp

        self._key = secrets.token_urlsafe(24)
        settings: Any = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx, settings.n_parallel, settings.warmup = context_length, 1, False
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.api_keys = [self._key]
        self._server = xllamacpp.Server(settings)

    def tokens(self, text: str) -> list[int]:
        """The text as ids, markers as markers."""
        answer = self._post("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        return [int(number) for number in answer["tokens"]]

    def answer(self, ids: list[int], count: int) -> list[int]:
        """At most `count` greedy tokens behind `ids`."""
        asked = {
            "prompt": ids, "n_predict": count, "temperature": 0, "top_k": 1, "return_tokens": True,
            "cache_prompt": False,
        }  # fmt: skip
        return [int(number) for number in self._post("/completion", asked)["tokens"]]

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"content-type": "application/json", "authorization": f"Bearer {self._key}"}
        request = Request(self._server.listening_address + path, json.dumps(body).encode(), headers)  # noqa: S310 - our own
        with urlopen(request, timeout=PATIENCE_S) as response:  # noqa: S310
            found: dict[str, Any] = json.load(response)
            return found
