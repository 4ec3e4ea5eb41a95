"""Many adapters beside one base: each answer is that of its merged model, whoever is in the batch."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from app.contracts.conversation import Message
from app.contracts.generation import GenerationRequest, Sampling
from app.contracts.recipe import ModelFiles, Overlay
from tests.worker.adapters_made import make_adapter
from tests.worker.tiny import make_model
from worker.engine.errors import BadData
from worker.engine.generate import Generation, Loaded, lay, load
from worker.engine.products import Layer, matrix
from worker.engine.scoring import score
from worker.engine.slots import Slots

KINDS = {
    "plain": {},
    "stabilised, another rank": {"r": 7, "use_rslora": True},
    "magnitudes": {"use_dora": True},
    "few sites": {"target_modules": None},
}
QUESTIONS = ["How do I reset my password?", "Where is my card? " * 9, "?", "settings " * 20, "How?"]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[ModelFiles]:
    """A base, and the same with each kind of adapter."""
    home = tmp_path_factory.mktemp(request.param)
    base = make_model(home / "base", architecture=request.param, context_length=256)
    found = [ModelFiles(base_dir=str(base))]
    for seed, (name, config) in enumerate(KINDS.items()):
        if "target_modules" in config:
            config = {"target_modules": ["q_proj", "down_proj"] if request.param == "llama" else ["c_fc"]}
        folder = make_adapter(base, home / name, seed + 1, **config)
        found.append(ModelFiles(base_dir=str(base), overlays=[Overlay(kind="lora", dir=str(folder))]))
    return found


def asked(loaded: Loaded, question: str, **sampling: object) -> Generation:
    return Generation(
        loaded,
        GenerationRequest(
            model_ref="m",
            workspace_id="w",
            files=ModelFiles(base_dir="unused"),
            messages=[Message(role="user", content=question)],
            sampling=Sampling(**{"temperature": 0, "max_tokens": 24, **sampling}),
        ),
    )


def alone(generation: Generation) -> list[int]:
    while not generation.is_done:
        generation.step()
    return generation.ids


def beside(base: Loaded, models: list[ModelFiles]) -> list[Loaded]:
    """The models of one resident base."""
    laid = [lay(base, files, key=str(number)) for number, files in enumerate(models[1:])]
    assert all(laid)
    return [base, *(one for one in laid if one is not None)]


def test_each_answer_in_one_batch_is_that_of_the_merged_model(models: list[ModelFiles]) -> None:
    merged = [alone(asked(load(files), question)) for files, question in zip(models, QUESTIONS, strict=True)]
    loaded = beside(load(models[0]), models)
    answers = [asked(one, question) for one, question in zip(loaded, QUESTIONS, strict=True)]
    slots = Slots(loaded[0])
    for number, answer in enumerate(answers):
        slots.add(answer)
        for _ in range(number):  # each joins while those before it speak
            slots.step()
    while slots.answers:
        slots.step()
    assert [answer.ids for answer in answers] == merged
    ends = {tuple(alone(asked(one, QUESTIONS[0]))) for one in loaded}
    assert len(ends) == len(models), "every adapter says something else"


def test_alone_and_scored_as_the_merged_model(models: list[ModelFiles]) -> None:
    base = load(models[0])
    ask = [Message(role="user", content="Where?")]
    for files, one in zip(models, beside(base, models), strict=True):
        merged = load(files)
        assert alone(asked(one, QUESTIONS[1])) == alone(asked(merged, QUESTIONS[1]))
        mine, expected = score(one, ask, "", "Open the settings."), score(merged, ask, "", "Open the settings.")
        assert mine.log_probability == pytest.approx(expected.log_probability, abs=1e-3)


def test_what_was_read_with_one_adapter_is_not_taken_for_another(models: list[ModelFiles]) -> None:
    base, one, other, *_ = beside(load(models[0]), models)
    slots = Slots(base)
    for loaded in (one, base):
        slots.add(asked(loaded, QUESTIONS[1]))
        while slots.answers:
            slots.step()
    reads = []
    for loaded in (one, other, base):
        answer = asked(loaded, QUESTIONS[1])
        slots.add(answer)
        reads.append(answer.read)
        slots.drop(answer)
    assert reads[1] == 0
    assert reads[0] > 16
    assert reads[2] > 16


def test_an_adapter_that_changes_more_is_merged_and_one_of_another_base_is_refused(
    models: list[ModelFiles], tmp_path: Path
) -> None:
    base = load(models[0])
    folder = make_adapter(Path(models[0].base_dir), tmp_path / "head", 9, modules_to_save=["lm_head"])
    files = models[0].model_copy(update={"overlays": [Overlay(kind="lora", dir=str(folder))]})
    assert lay(base, files, "head") is None
    wide = make_model(tmp_path / "wide", architecture="gpt2" if "llama" in models[0].base_dir else "llama")
    foreign = make_adapter(wide, tmp_path / "foreign", 9)
    files = models[0].model_copy(update={"overlays": [Overlay(kind="lora", dir=str(foreign))]})
    with pytest.raises(BadData, match="does not fit this base model"):
        lay(base, files, "foreign")


def test_what_an_adapter_says_of_its_base_and_its_layers_is_not_believed(
    models: list[ModelFiles], tmp_path: Path
) -> None:
    """The base comes from our own records, the layers from the weights: no path is followed, no expression run."""
    folder = Path(shutil.copytree(models[1].overlays[-1].dir, tmp_path / "hostile"))
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "/etc", "target_modules": "(([a-z._0-9])+)+!"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    hostile = models[1].model_copy(update={"overlays": [Overlay(kind="lora", dir=str(folder))]})
    base = load(models[0])
    honest, laid = lay(base, models[1], "honest"), lay(base, hostile, "hostile")
    assert honest is not None
    assert laid is not None
    assert alone(asked(laid, QUESTIONS[1])) == alone(asked(honest, QUESTIONS[1]))


def test_base_weights_are_never_touched(models: list[ModelFiles]) -> None:
    base = load(models[0])
    before = {name: tensor.clone() for name, tensor in weights(base).items()}
    for one in beside(base, models):
        alone(asked(one, QUESTIONS[0]))
        slots = Slots(base)
        slots.add(asked(one, QUESTIONS[0]))
        while slots.answers:
            slots.step()
    after = weights(base)
    assert len(before) > 10
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def weights(loaded: Loaded) -> dict[str, torch.Tensor]:
    """Every weight of a model, also of layers in forms of their own."""
    layers = {name: layer for name, layer in loaded.model.named_modules() if isinstance(layer, Layer)}
    return {**loaded.model.state_dict(), **{name: matrix(layer) for name, layer in layers.items()}}
