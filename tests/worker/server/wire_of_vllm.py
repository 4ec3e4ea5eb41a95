"""vLLM's documented HTTP for the tests, with transformers and peft behind it: a base model, adapters that come and go.

It answers greedily, one token a chunk, as `vllm serve --enable-lora` does with VLLM_ALLOW_RUNTIME_LORA_UPDATING.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel


class Wire(ThreadingHTTPServer):
    """`adapters`: name → model; `asked`: bodies of completions. With `takes_adapters` off the paths are not there."""

    daemon_threads = True

    def __init__(self, base: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.base, self.model = base, _loaded(base)
        self.adapters: dict[str, PreTrainedModel] = {}
        self.asked: list[dict[str, Any]] = []
        self.takes_adapters = True
        self.breaks_off_after: int | None = None
        self.is_left = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def wire_of_vllm(base: Path) -> Iterator[Wire]:
    server = Wire(base)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def _loaded(base: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


class _Requests(BaseHTTPRequestHandler):
    server: Wire

    def do_GET(self) -> None:
        named = [{"id": "served", "object": "model", "root": str(self.server.base), "parent": None}]
        named += [{"id": name, "object": "model", "parent": "served"} for name in self.server.adapters]
        self._whole(200, {"object": "list", "data": named})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/completions" and body["model"] not in ("served", *self.server.adapters):
            self._whole(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        elif self.path == "/v1/completions":
            self._complete(body)
        elif not self.server.takes_adapters:
            self._whole(404, {"detail": "Not Found"})
        elif self.path == "/v1/load_lora_adapter":
            self._load(body)
        else:
            is_there = self.server.adapters.pop(body["lora_name"], None) is not None
            self._whole(200 if is_there else 404, {"error": {"message": "unloaded" if is_there else "no such adapter"}})

    def _load(self, body: dict[str, str]) -> None:
        if "lora_name" not in body:
            return self._whole(400, {"error": {"message": "Both 'lora_name' and 'lora_path' must be provided."}})
        if body["lora_name"] in self.server.adapters:
            return self._whole(400, {"error": {"message": "The lora adapter has already been loaded."}})
        self.server.adapters[body["lora_name"]] = PeftModel.from_pretrained(
            _loaded(self.server.base), body["lora_path"]
        ).eval()
        return self._whole(200, {})

    @torch.inference_mode()
    def _complete(self, body: dict[str, Any]) -> None:
        self.server.asked.append(body)
        model = self.server.adapters.get(body["model"]) or self.server.model
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        ids, said = list(body["prompt"]), 0
        try:
            while True:
                odds = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
                token = int(odds.argmax())
                ids.append(token)
                said += 1
                reason = "stop" if token in body["stop_token_ids"] else "length" if said >= body["max_tokens"] else None
                choice = {"index": 0, "text": "", "token_ids": [token], "finish_reason": reason}
                if (count := body.get("logprobs")) is not None:
                    values, places = odds.topk(max(count, 1))
                    top = dict(zip((f"token_id:{at}" for at in places.tolist()), values.tolist(), strict=True))
                    chosen = {"tokens": [f"token_id:{token}"], "token_logprobs": [float(odds[token])]}
                    choice["logprobs"] = chosen | {"top_logprobs": [top]}
                self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
                if said == self.server.breaks_off_after:
                    return
                if reason:
                    self.wfile.write(b"data: [DONE]\n\n")
                    return
        except OSError:
            self.server.is_left.set()

    def _whole(self, status: int, payload: dict[str, Any]) -> None:
        text = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""
