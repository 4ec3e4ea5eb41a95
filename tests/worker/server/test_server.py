"""The model server as a real process on a real socket."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import ROOT, wait_for
from tests.worker.adapters_made import make_adapter
from tests.worker.tiny import make_model
from worker.engine.devices import processor_flags
from worker.engine.reading import PIECE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    home = Path(tempfile.mkdtemp(prefix="gptb-"))
    socket = home / "s" / "model.sock"
    child = subprocess.Popen(
        [sys.executable, "-m", "worker.server", "--socket", str(socket), "--threads", "1", "--compiled"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    client = httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://model", timeout=60)

    def is_up() -> bool:
        try:
            return client.get("/health").json()["compiled"] is not None
        except httpx.TransportError:
            return False

    try:
        wait_for(is_up, "the model server answers, and what this processor can compile is compiled", 120)
        assert (home / "s").stat().st_mode & 0o777 == 0o700
        yield client
    finally:
        client.close()
        child.terminate()
        assert child.wait(15) is not None


def _order(folder: Path, **sampling: object) -> dict[str, object]:
    return {
        "model_ref": "tiny",
        "workspace_id": "w",
        "files": {"base_dir": str(folder)},
        "messages": [{"role": "user", "content": "How do I reset my password?"}],
        "sampling": {"temperature": 0, "max_tokens": 12, **sampling},
    }


def _ask(server: httpx.Client, order: dict[str, object]) -> list[dict[str, object]]:
    with server.stream("POST", "/generate", json=order) as response:
        return [orjson.loads(line) for line in response.iter_lines() if line]


def test_an_answer_streams_and_ends_with_counts(server: httpx.Client, folder: Path) -> None:
    events = _ask(server, _order(folder))
    assert events[-1]["finish_reason"] in {"stop", "length"}
    assert events[-1]["completion_tokens"] == 12 or events[-1]["finish_reason"] == "stop"
    assert all("finish_reason" not in event for event in events[:-1])
    names = [model["name"] for model in server.get("/models").json()["models"]]
    assert names == ["tiny"]


def test_passes_are_compiled_where_the_processor_can(server: httpx.Client) -> None:
    assert server.get("/health").json()["compiled"] == ("avx512f" in processor_flags())


def test_a_missing_model_is_an_error_event_and_the_next_request_works(server: httpx.Client, folder: Path) -> None:
    events = _ask(server, _order(folder / "nowhere"))
    assert events[-1]["finish_reason"] == "error"
    assert "cannot" in str(events[-1]["error"])
    assert _ask(server, _order(folder))[-1]["finish_reason"] != "error"


def test_a_client_that_leaves_frees_its_place(server: httpx.Client, folder: Path) -> None:
    order = _order(folder, temperature=2.0, max_tokens=100)
    with server.stream("POST", "/generate", json=order) as response:
        next(response.iter_lines())
    wait_for(lambda: server.get("/health").json()["active"] == 0, "no answer is active")


def test_adapters_are_switched_under_way_and_a_deleted_one_is_loaded_no_more(
    server: httpx.Client, folder: Path, tmp_path: Path
) -> None:
    server.post("/unload", json={"model_ref": "tiny"})
    plain = "".join(str(event.get("text", "")) for event in _ask(server, _order(folder)))
    said = []
    for number in range(2):
        adapter = make_adapter(folder, tmp_path / f"a{number}", number)
        order = _order(folder) | {"model_ref": f"model:{number}"}
        order["files"] = {"base_dir": str(folder), "overlays": [{"kind": "lora", "dir": str(adapter)}]}
        said.append("".join(str(event.get("text", "")) for event in _ask(server, order)))
    assert len({plain, *said}) == 3
    sizes = {model["name"]: model["size_bytes"] for model in server.get("/models").json()["models"]}
    assert set(sizes) == {"tiny", "model:0", "model:1"}, "one base for all"
    server.post("/unload", json={"model_ref": "model:1"})
    shutil.rmtree(tmp_path / "a1")
    assert _ask(server, order)[-1]["error_kind"] == "failed"
    assert "".join(str(event.get("text", "")) for event in _ask(server, _order(folder))) == plain
    server.post("/unload", json={"model_ref": "model:0"})


def test_a_format_a_seed_and_log_probabilities(server: httpx.Client, folder: Path) -> None:
    form = {"kind": "choice", "choices": ["settings", "security"]}
    events = _ask(server, _order(folder, temperature=1.5, seed=4, format=form, top_logprobs=2))
    text = "".join(str(event.get("text", "")) for event in events)
    assert text in form["choices"]
    told = [one for event in events for one in event.get("logprobs", [])]
    assert b"".join(bytes(one["bytes"]) for one in told).decode() == text
    assert all(len(one["top"]) == 2 for one in told)
    broken = _ask(server, _order(folder, format={"kind": "regex", "regex": "(a"}))
    assert broken[-1]["error_kind"] == "refused"
    assert "cannot be read" in str(broken[-1]["error"])


def test_scores(server: httpx.Client, folder: Path) -> None:
    order = {
        "model_ref": "tiny",
        "files": {"base_dir": str(folder)},
        "messages": [{"role": "user", "content": "Where?"}],
        "answers": ["Open the settings.", "It is on its way."],
    }
    scores = server.post("/score", json=order).json()["scores"]
    assert len(scores) == 2
    assert all(score["log_probability"] < 0 and score["tokens"] > 2 for score in scores)


def test_a_text_is_foretold_token_by_token_as_in_one_pass(server: httpx.Client, folder: Path) -> None:
    text = "How do I reset my password? " * 12
    order = {"model_ref": "tiny", "files": {"base_dir": str(folder)}, "text": text, "top_logprobs": 2}
    told = server.post("/foretell", json=order).json()["tokens"]
    assert "".join(one["token"] for one in told) == text
    assert told[0]["logprob"] is None
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[one["id"] for one in told]])
    assert ids.shape[1] > PIECE, "more than one piece"
    with torch.inference_mode():
        logits = model(ids).logits[0, :-1].log_softmax(-1)
    expected = logits.gather(1, ids[0, 1:, None])[:, 0].tolist()
    assert [one["logprob"] for one in told[1:]] == pytest.approx(expected, abs=1e-4)
    assert [one["top"][0]["id"] for one in told[1:]] == logits.argmax(-1).tolist()
    long = server.post("/foretell", json={**order, "text": text * 20})
    assert long.status_code == 422
    assert "too long" in long.json()["error"]


def test_unload(server: httpx.Client, folder: Path) -> None:
    _ask(server, _order(folder))
    assert server.post("/unload", json={"model_ref": "tiny"}).json()["unloaded"] == 1
    assert server.get("/models").json()["models"] == []
    assert _ask(server, _order(folder))[-1]["finish_reason"] != "error"
