"""Number formats: a row's result never depends on its neighbours, and what a format spoils stays in fp32."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from app.contracts.conversation import Message
from app.contracts.generation import GenerationRequest, Sampling
from app.contracts.recipe import ModelFiles, Overlay
from tests.worker.adapters_made import make_adapter
from tests.worker.tiny import make_model
from worker.engine import precision
from worker.engine.generate import Generation, Loaded, lay, load
from worker.engine.products import Int8Linear, matrix
from worker.engine.slots import Slots

needs_int8 = pytest.mark.skipif(not precision.computes_int8(), reason="this processor has no fast int8 products")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    folder = make_model(tmp_path_factory.mktemp(request.param), architecture=request.param)
    return ModelFiles(base_dir=str(folder))


def answered(loaded: Loaded, *questions: str) -> list[list[int]]:
    """The ids of greedy answers made together."""
    slots, answers = Slots(loaded.root), []
    for question in questions:
        request = GenerationRequest(
            model_ref="m",
            workspace_id="w",
            files=ModelFiles(base_dir="unused"),
            messages=[Message(role="user", content=question)],
            sampling=Sampling(temperature=0, max_tokens=16),
        )
        answers.append(Generation(loaded, request))
        slots.add(answers[-1])
    while slots.answers:
        slots.step()
    return [answer.ids for answer in answers]


@needs_int8
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_a_row_has_its_own_scale(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 64) if kind is nn.Linear else Conv1D(64, 96)
    fast = Int8Linear(layer)
    rows = torch.randn(5, 96) * torch.tensor([1, 100, 0.01, 1, 0])[:, None]
    with torch.inference_mode():
        exact, together = layer(rows), fast(rows)
        assert torch.equal(together, torch.cat([fast(row[None]) for row in rows]))
    assert float((together - exact).norm() / exact.norm()) < 0.02
    assert float((together[2] - exact[2]).norm() / exact[2].norm()) < 0.05, "a small row beside a large one"
    assert float((fast.matrix - matrix(layer)).norm() / matrix(layer).norm()) < 0.01


@needs_int8
def test_an_int8_model_answers_the_same_alone_and_in_company(files: ModelFiles, tmp_path: Path) -> None:
    loaded = load(files, precision="int8")
    assert loaded.precision == "int8"
    assert loaded.size_bytes < load(files).size_bytes
    questions = ["How do I reset my password?", "Where is my card? " * 4, "?"]
    assert answered(loaded, *questions) == [answered(loaded, question)[0] for question in questions]
    folder = make_adapter(Path(files.base_dir), tmp_path / "a", 3, use_dora=True)
    laid = files.model_copy(update={"overlays": [Overlay(kind="lora", dir=str(folder))]})
    adapted = lay(loaded, laid, "a")
    assert adapted is not None
    assert adapted.adapter is not None
    assert answered(adapted, questions[0]) != answered(loaded, questions[0])


@needs_int8
def test_a_model_that_int8_spoils_stays_exact_and_says_why(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "quantise", _spoil)
    loaded = load(files, precision="int8")
    assert loaded.precision == "fp32"
    assert "so fp32 is used" in loaded.note
    assert answered(loaded, "How?") == answered(load(files), "How?")


def _spoil(model: nn.Module) -> None:
    """Layers that came out wrong, as with weights whose one giant value eats the scale."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear | Conv1D):
            wrong = nn.Linear(*reversed(matrix(layer).shape))
            model.set_submodule(name, wrong)


def test_bf16_is_taken_where_it_is_faster_and_refused_with_a_reason_elsewhere(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "computes_bf16", lambda device: False)
    refused = load(files, precision="bf16")
    assert (refused.precision, refused.model.dtype) == ("fp32", torch.float32)
    assert refused.note == "This processor does not compute in bf16, so fp32 is used."
    monkeypatch.setattr(precision, "computes_bf16", lambda device: True)
    monkeypatch.setattr(precision, "_least_s", lambda rows, weights: 1.0 if rows.dtype is torch.bfloat16 else 2.0)
    taken = load(files, precision="bf16")
    assert (taken.precision, taken.model.dtype) == ("bf16", torch.bfloat16)
    assert all(answered(taken, "How do I reset my password?", "?"))


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="only Linux tells which files are in memory")
@pytest.mark.parametrize("wanted", ["fp32", pytest.param("int8", marks=needs_int8)])
def test_a_loaded_model_lets_its_file_go(files: ModelFiles, wanted: precision.Precision) -> None:
    """Answers read copies of the weights; one small tensor in the file would keep all of it in memory beside them."""
    loaded = load(files, precision=wanted)
    assert loaded.precision == wanted
    assert files.base_dir not in Path("/proc/self/maps").read_text(encoding="utf-8")
