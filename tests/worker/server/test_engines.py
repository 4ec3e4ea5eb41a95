"""The contract of the model server: every engine behind it answers alike, base models and adapters.

Our own engine, vLLM's wire with transformers and peft behind it, and a real vLLM where one is installed: name its
command in GPT_BUILDER_TEST_VLLM (or have `vllm` on the PATH).
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from fastapi.testclient import TestClient
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import wait_for
from tests.worker.adapters_made import make_adapter
from tests.worker.server.wire_of_vllm import Wire, wire_of_vllm
from tests.worker.tiny import make_model
from worker.server.api import create_server
from worker.server.vllm import Vllm

VLLM = os.environ.get("GPT_BUILDER_TEST_VLLM", "") or shutil.which("vllm") or ""
READY_WITHIN_S = 400
ASK = [{"role": "user", "content": "Where is my card?"}]


@dataclass(frozen=True)
class Models:
    """A base model and two adapters of it."""

    base: Path
    adapters: tuple[Path, Path]

    def files(self, adapter: int | None = None) -> dict[str, Any]:
        laid = [] if adapter is None else [{"kind": "lora", "dir": str(self.adapters[adapter])}]
        return {"base_dir": str(self.base), "overlays": laid}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    base = make_model(folder / "base")
    # As small as vLLM's kernels allow: heads of 32 numbers.
    config = LlamaConfig.from_pretrained(base, hidden_size=128, head_dim=32, intermediate_size=128)
    LlamaForCausalLM(config).save_pretrained(base)
    return Models(base, (make_adapter(base, folder / "a", 1), make_adapter(base, folder / "b", 2)))


@contextmanager
def real_vllm(base: Path) -> Iterator[str]:
    """A vLLM process that holds the model, with adapters at run time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [
        "--enable-lora",
        "--max-lora-rank",
        "8",
        "--dtype",
        "float32",
        "--enforce-eager",
        "--max-model-len",
        "128",
    ]
    command = [VLLM, "serve", str(base), "--host", "127.0.0.1", "--port", str(port), *options]
    environment = {**os.environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_CPU_KVCACHE_SPACE": "1"}
    child = subprocess.Popen(command, env=environment)
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        assert child.poll() is None, "vLLM ended"
        try:
            return httpx.get(f"{url}/health", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_for(is_up, "vLLM answers", READY_WITHIN_S)
        yield url
    finally:
        child.terminate()
        child.wait(60)


@pytest.fixture(scope="module")
def wire(models: Models) -> Iterator[Wire]:
    with wire_of_vllm(models.base) as server:
        yield server


@pytest.fixture(scope="module")
def own() -> Iterator[TestClient]:
    with TestClient(create_server()) as server:
        yield server


@pytest.fixture(scope="module", params=["vLLM's wire", "a real vLLM"])
def other(request: pytest.FixtureRequest, models: Models) -> Iterator[TestClient]:
    """The model server with another engine behind it."""
    if request.param == "vLLM's wire":
        address = request.getfixturevalue("wire").url
        with TestClient(create_server(vllm=Vllm(address))) as server:
            yield server
        return
    if not VLLM:
        pytest.skip("vLLM is not installed here: the contract ran on our own engine and on vLLM's wire only")
    with real_vllm(models.base) as address, TestClient(create_server(vllm=Vllm(address))) as server:
        yield server


def ask(server: TestClient, files: dict[str, Any], ref: str = "m", **sampling: Any) -> list[dict[str, Any]]:
    order = {
        "model_ref": ref, "workspace_id": "w", "files": files, "messages": ASK,
        "sampling": {"temperature": 0, "max_tokens": 12, **sampling},
    }  # fmt: skip
    with server.stream("POST", "/generate", json=order) as response:
        return [orjson.loads(line) for line in response.iter_lines() if line]


def said(events: list[dict[str, Any]]) -> str:
    return "".join(event.get("text", "") for event in events)


COUNTS = ("finish_reason", "prompt_tokens", "completion_tokens")


@pytest.mark.parametrize("adapter", [None, 0, 1])
def test_engines_say_the_same_with_the_same_counts(
    own: TestClient, other: TestClient, models: Models, adapter: int | None
) -> None:
    files = models.files(adapter)
    here, there = ask(own, files, f"m{adapter}"), ask(other, files, f"m{adapter}")
    assert said(there) == said(here) != ""
    assert [there[-1].get(name) for name in COUNTS] == [here[-1].get(name) for name in COUNTS]
    assert there[-1]["total_s"] >= there[-1]["first_token_s"] > 0


def test_the_adapter_changes_the_answer(other: TestClient, models: Models) -> None:
    assert len({said(ask(other, models.files(adapter), f"m{adapter}")) for adapter in (None, 0, 1)}) == 3


def test_engines_stop_at_the_same_text_across_tokens(own: TestClient, other: TestClient, models: Models) -> None:
    stop = said(ask(own, models.files()))[3:6]
    here, there = ask(own, models.files(), stop=[stop]), ask(other, models.files(), stop=[stop])
    assert said(there) == said(here)
    assert there[-1]["finish_reason"] == "stop"
    assert stop not in said(there)


def test_engines_tell_the_same_probabilities(own: TestClient, other: TestClient, models: Models) -> None:
    def told(server: TestClient) -> list[dict[str, Any]]:
        events = ask(server, models.files(), top_logprobs=2, max_tokens=4)
        return [one for event in events for one in event.get("logprobs") or []]

    here, there = told(own), told(other)
    assert [one["id"] for one in there] == [one["id"] for one in here]
    assert [one["token"] for one in there] == [one["token"] for one in here]
    assert [one["logprob"] for one in there] == pytest.approx([one["logprob"] for one in here], abs=1e-3)
    assert [[o["id"] for o in one["top"]] for one in there] == [[o["id"] for o in one["top"]] for one in here]


def test_engines_refuse_what_is_too_long(own: TestClient, other: TestClient, models: Models) -> None:
    order = {
        "model_ref": "m", "workspace_id": "w", "files": models.files(),
        "messages": [{"role": "user", "content": "my card " * 200}], "sampling": {"max_tokens": 4},
    }  # fmt: skip
    for server in (own, other):
        last = orjson.loads(server.post("/generate", json=order).text.strip().splitlines()[-1])
        assert (last["finish_reason"], last["error_kind"]) == ("error", "refused")
        assert "too long" in last["error"]


def test_adapters_come_and_go_with_their_models(models: Models, wire: Wire) -> None:
    wire.adapters.clear()
    with TestClient(create_server(vllm=Vllm(wire.url, most_adapters=1))) as server:
        ask(server, models.files(0), "first")
        (first,) = wire.adapters
        ask(server, models.files(0), "first")
        assert set(wire.adapters) == {first}, "loaded once"
        ask(server, models.files(1), "second")
        (second,) = wire.adapters
        assert second != first, "the least recently used one has left"
        assert server.post("/unload", json={"model_ref": "second"}).json() == {"unloaded": 1}
        assert not wire.adapters
    # After a restart of ours the adapter may still be there.
    with TestClient(create_server(vllm=Vllm(wire.url))) as server:
        ask(server, models.files(0), "first")
    with TestClient(create_server(vllm=Vllm(wire.url))) as server:
        assert said(ask(server, models.files(0), "first")) != ""
        assert set(wire.adapters) == {first}


def test_an_adapter_is_loaded_again_after_vllm_was_restarted(models: Models, wire: Wire) -> None:
    with TestClient(create_server(vllm=Vllm(wire.url))) as server:
        before = said(ask(server, models.files(0), "m0"))
        wire.adapters.clear()
        events = ask(server, models.files(0), "m0")
    assert "error" not in events[-1]
    assert said(events) == before


def test_workspaces_do_not_share_what_was_read(models: Models, wire: Wire) -> None:
    with TestClient(create_server(vllm=Vllm(wire.url))) as server:
        wire.asked.clear()
        for workspace in ("one", "two", "one"):
            order = {"model_ref": "m", "workspace_id": workspace, "files": models.files(), "messages": ASK}
            server.post("/generate", json={**order, "sampling": {"max_tokens": 1}})
    salts = [body["cache_salt"] for body in wire.asked]
    assert salts[0] == salts[2] != salts[1]


def test_what_vllm_does_not_hold_our_own_engine_answers(models: Models, wire: Wire, tmp_path: Path) -> None:
    with TestClient(create_server(vllm=Vllm(wire.url))) as server:
        wire.asked.clear()
        assert said(ask(server, {"base_dir": str(make_model(tmp_path / "other", seed=3))}, "elsewhere"))
        wire.takes_adapters = False
        try:
            assert said(ask(server, models.files(1), "second"))
        finally:
            wire.takes_adapters = True
        assert not wire.asked


def test_a_vllm_that_is_away_or_breaks_off_is_told(models: Models, wire: Wire) -> None:
    with TestClient(create_server(vllm=Vllm("http://127.0.0.1:1", is_needed=True))) as server:
        (last,) = ask(server, models.files())
        assert (last["error_kind"], "does not answer" in last["error"]) == ("busy", True)
    with TestClient(create_server(vllm=Vllm("http://127.0.0.1:1", is_needed=False))) as server:
        assert said(ask(server, models.files())), "our own engine answers meanwhile"
    wire.breaks_off_after = 2
    try:
        with TestClient(create_server(vllm=Vllm(wire.url))) as server:
            events = ask(server, models.files())
    finally:
        wire.breaks_off_after = None
    assert (events[-1]["finish_reason"], "broke off" in events[-1]["error"]) == ("error", True)
