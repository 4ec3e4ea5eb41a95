"""Every way of learning on its own: its files serve as they trained, and a stop in the middle changes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from transformers import DynamicCache

from app.contracts.events import Control
from app.contracts.recipe import LoraSpec, ModelFiles, Overlay, RecipeSpec, ScratchSpec, TrainOrder
from tests.worker.engine.engine_material import of, run, turns, write_version
from worker.engine import loading, optim, scratch
from worker.engine.errors import BadData
from worker.engine.methods.lora import Lora
from worker.engine.methods.whole import weights, write_model

MakeOrder = Callable[..., TrainOrder]
Bases = Callable[..., Path]
SMALL = {"rank": 4, "alpha": 8}
WAYS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "lora": {**SMALL, "dropout": 0.1, "b_rate_ratio": 4}},
    "pissa": {"method": "lora", "lora": {**SMALL, "initialisation": "pissa"}},
    "rslora": {"method": "lora", "lora": {**SMALL, "rank_stabilised": True}, "neftune_alpha": 5.0},
    "dora": {"method": "lora", "lora": {**SMALL, "dora": True}},
    "last layers": {"method": "last_layers", "last_layers": 1},
    "full": {"method": "full", "label_smoothing": 0.1},
    "full, Adafactor": {"method": "full", "optimizer": "adafactor"},
    "preferences": {"method": "lora", "lora": SMALL, "learn_from": "preferences"},
    "scratch": {"method": "scratch"},
    "scratch, GPT-2": {"method": "scratch", "shape": {"architecture": "gpt2", "kv_heads": None}, "schedule": "wsd"},
    "scratch, learned, LayerNorm": {"method": "scratch", "shape": {"positions": "learned", "norm": "layer"}},
    "scratch, sinusoidal, BatchNorm": {"method": "scratch", "shape": {"positions": "sinusoidal", "norm": "batch"}},
}
SIZES = {"layers": 2, "heads": 4, "kv_heads": 2, "width": 32, "context_length": 64, "vocabulary_size": 400}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """15 questions with two answers each: every method finds something to learn in them."""
    found = []
    for i in range(15):
        asked, good, bad = (
            {"role": role, "content": text, "train": True}
            for role, text in (("user", f"What is {i}?"), ("assistant", f"It is {i}."), ("assistant", "Nothing."))
        )
        split = "validation" if i in (0, 7, 11) else "train"
        found.append({"messages": [asked, good], "chosen": [good], "rejected": [bad], "split": split})
    return write_version(tmp_path / "rows", found)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(way: str, make_order: MakeOrder, rows: Path) -> None:
    asked = dict(WAYS[way])
    method, shape = asked.pop("method"), asked.pop("shape", None)
    if shape:
        asked["scratch"] = {**SIZES, **shape}
    asked |= {"epochs": 2, "evaluate_every_steps": 3, "batch_size": 4, "micro_batch_size": 2}
    asked |= {"sample_max_tokens": 1, "sample_prompts": ["What?"]}
    whole = make_order(method, out="whole", data=rows, **asked)
    stopped = make_order(method, out="stopped", data=rows, **asked)
    losses = _losses(run(whole))
    first = run(stopped, {4: Control(verb="pause")})
    assert len(losses) == 6 + 2
    assert _losses(first) + _losses(run(stopped)) == losses
    for path in (Path(whole.out_dir) / "model").glob("*.safetensors"):
        assert path.read_bytes() == (Path(stopped.out_dir) / "model" / path.name).read_bytes()


def _losses(events: list[Any]) -> list[float]:
    return [event.loss for event in events if event.type in ("step", "evaluated")]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", [{"dora": True}, {"rank_stabilised": True}, {"dora": True, "rank_stabilised": True}])
def test_an_adapter_serves_as_it_trained_merged_or_not(
    architecture: str, kind: dict[str, bool], bases: Bases, tmp_path: Path
) -> None:
    files = ModelFiles(base_dir=str(bases(architecture)))
    spec = RecipeSpec.model_validate({"method": "lora", "base_source": "starter", "lora": {**SMALL, **kind}})
    ids = torch.arange(4, 20)[None]
    before = loading.load_model(files, torch.float32)(input_ids=ids).logits.detach()
    model, method = loading.load_model(files, torch.float32), Lora()
    method.prepare(model, spec)
    torch.testing.assert_close(model(input_ids=ids).logits, before, atol=1e-4, rtol=1e-4)
    named = optim.learning_parameters(model)
    assert any("magnitude" in name for name, _ in named) == ("dora" in kind)
    torch.manual_seed(0)
    with torch.no_grad():
        for _, parameter in named:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    trained = model(input_ids=ids).logits.detach()
    assert (trained - before).abs().max() > 1e-3
    method.write(model, tmp_path / "adapter")
    plain = PeftModel.from_pretrained(loading.load_model(files, torch.float32), tmp_path / "adapter")
    torch.testing.assert_close(plain(input_ids=ids).logits, trained, atol=1e-4, rtol=1e-4)
    merged = loading.apply_overlay(
        loading.load_model(files, torch.float32), Overlay(kind="lora", dir=str(tmp_path / "adapter"))
    )
    torch.testing.assert_close(merged(input_ids=ids).logits, trained, atol=1e-4, rtol=1e-4)


def test_dora_begins_as_the_base_in_bf16_and_learns_in_fp32(bases: Bases) -> None:
    model = loading.load_model(ModelFiles(base_dir=str(bases("llama"))), torch.bfloat16)
    Lora().prepare(model, RecipeSpec(method="lora", base_source="starter", lora=LoraSpec(dora=True)))
    assert {p.dtype for _, p in optim.learning_parameters(model)} == {torch.float32}


@pytest.mark.parametrize("kind", ["dora", "four_bit"])
def test_a_start_that_changes_the_base_is_refused_where_the_base_must_stay(kind: str) -> None:
    with pytest.raises(ValidationError, match="choose the start “Zero”"):
        LoraSpec.model_validate({"initialisation": "pissa", kind: True})


@pytest.mark.skipif(torch.cuda.is_available(), reason="here QLoRA may run")
def test_qlora_without_a_card_says_what_to_do(make_order: MakeOrder) -> None:
    with pytest.raises(BadData, match="needs an NVIDIA graphics card"):
        run(make_order("lora", lora={"four_bit": True}))


def test_a_new_reading_of_the_answers_needs_no_preferences(make_order: MakeOrder, tmp_path: Path) -> None:
    data = write_version(tmp_path / "plain", [{"messages": turns(f"Say {n}", f"It is {n}.")} for n in range(4)])
    assert of(run(make_order("lora", data=data, max_steps=1)), "step")[0].margin is None


@pytest.mark.parametrize(("positions", "norm"), [("learned", "rms"), ("sinusoidal", "layer"), ("rope", "batch")])
def test_a_new_model_of_our_own_kind_is_the_same_from_its_files(positions: str, norm: str, tmp_path: Path) -> None:
    spec = ScratchSpec.model_validate({**SIZES, "positions": positions, "norm": norm})
    torch.manual_seed(0)
    model = scratch.create(spec, vocabulary_size=97, end_ids=[2], pad_id=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    ids = torch.randint(4, 97, (1, 20))
    model.train()
    for _ in range(3):
        model(input_ids=ids)  # the running statistics move
    model.eval()
    write_model(model, weights(model), tmp_path / "model", tmp_path)
    again = loading.load_model(ModelFiles(base_dir=str(tmp_path / "model")), torch.float32)
    logits = model(input_ids=ids).logits
    torch.testing.assert_close(again(input_ids=ids).logits, logits, atol=1e-5, rtol=1e-5)
    # The same word elsewhere is another thing, and an answer goes on where the prompt was read to.
    turned = model(input_ids=ids.flip(1)).logits.flip(1)
    assert (turned - logits).abs().max() > 1e-3
    cache = DynamicCache(config=model.config)
    model(input_ids=ids[:, :12], past_key_values=cache, use_cache=True)
    rest = model(input_ids=ids[:, 12:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(rest, logits[:, 12:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_under_batch_norm_a_word_sees_what_comes_after_it_while_training(norm: str) -> None:
    model = scratch.create(
        ScratchSpec.model_validate({**SIZES, "norm": norm}), vocabulary_size=97, end_ids=[2], pad_id=3
    )
    ids = torch.arange(4, 24)[None]
    other = ids.clone()
    other[0, -1] = 50
    first = [model.train()(input_ids=some).logits[0, 0] for some in (ids, other)]
    assert torch.equal(*first) == (norm == "layer")
    answering = [model.eval()(input_ids=some).logits[0, 0] for some in (ids, other)]
    torch.testing.assert_close(*answering)
