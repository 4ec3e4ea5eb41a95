"""The process in which llama.cpp answers a file: `python -m worker.engine.export.llama_cpp_server`.

An order as JSON on standard input (path, context_length, asked: ids, text, count); the answers as JSON on standard
output.
"""

import argparse
import json
import os
import secrets
import sys
from typing import Any
from urllib.request import Request, urlopen

from worker.engine.__main__ import die_with_parent, own_stdout

PATIENCE_S = 600


class Server:
    """llama.cpp's own server, on this machine's loopback and behind a key, for as long as this process lives."""

    def __init__(self, path: str, context_length: int) -> None:
        import xllamacpp

        self._key = secrets.token_urlsafe(24)
        settings: Any = xllamacpp.CommonParams()
        settings.model.path = path
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


def main() -> None:
    """Obey the order and end."""
    parser = argparse.ArgumentParser(prog="python -m worker.engine.export.llama_cpp_server")
    parser.add_argument("--parent", type=int, help="end when this process is no longer the parent (Linux)")
    die_with_parent(parser.parse_args().parent)
    out = own_stdout()
    order = json.load(sys.stdin)
    server = Server(order["path"], order["context_length"])
    said = []
    for one in order["asked"]:
        ids = server.tokens(one["text"]) if one["text"] is not None else None
        said.append({"ids": ids, "tokens": server.answer(one["ids"], one["count"]) if one["count"] else []})
    out.write(json.dumps(said).encode())
    out.flush()
    # Its server does not always end when it is told to; this process does.
    os._exit(0)


if __name__ == "__main__":
    main()
