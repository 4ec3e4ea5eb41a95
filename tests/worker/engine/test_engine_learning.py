"""The pass for training and threads with rows of their own: the plain model's loss and gradients, whoever learns."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.contracts.events import Control
from app.contracts.recipe import LoraSpec, RecipeSpec, TrainOrder
from tests.worker.engine.engine_material import run
from tests.worker.engine.test_engine_loss import CPU, build, reference, rows
from worker.engine import attention, learning, replicas
from worker.engine.devices import Device
from worker.engine.loss import summed_loss
from worker.engine.methods.lora import Lora
from worker.engine.packing import hidden_states, pack
from worker.engine.sharing import make_ready

LEARNS = ("all", "last layer", "adapters", "two adapters")


def prepared(family: str, learns: str) -> PreTrainedModel:
    """A model of two layers in which this learns, trained the quick way."""
    model = build(family)
    if learns == "last layer":
        model.requires_grad_(False)
        model.model.layers[1].requires_grad_(True)
    elif "adapters" in learns:
        targets = ["v_proj", "down_proj"] if learns.startswith("two") else []
        spec = LoraSpec(rank=4, alpha=12, target_modules=targets)
        Lora().prepare(model, RecipeSpec(method="lora", base_source="folder", base_ref="x", lora=spec))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    learning.attach(model)
    assert learning.pass_of(model) is not None
    return model


def learning_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = learning_of(model)
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], by: float = 0.99999) -> None:
    assert found.keys() == wanted.keys()
    for name, want in wanted.items():
        assert F.cosine_similarity(want.flatten(), found[name].flatten(), dim=0) > by, name
        assert float(found[name].norm()) == pytest.approx(float(want.norm()), rel=2 * (1 - by) ** 0.5), name


@pytest.mark.parametrize("learns", LEARNS)
@pytest.mark.parametrize("family", sorted(learning.FAMILIES - {"gpt_builder"}))
def test_loss_and_gradients_are_the_plain_models(family: str, learns: str) -> None:
    model = prepared(family, learns)
    plain = reference(model, rows(), 0.0)
    wanted = gradients(model, plain)
    mine, _ = summed_loss(model, pack(rows(), CPU))
    assert float(mine.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    assert_same(gradients(model, mine), wanted)


@pytest.mark.parametrize("learns", ["all", "adapters"])
def test_in_bf16_they_are_near_those_in_fp32(learns: str) -> None:
    model = prepared("llama", learns)
    exact = gradients(model, summed_loss(model, pack(rows(), CPU))[0])
    with torch.autocast("cpu", torch.bfloat16):
        mine, _ = summed_loss(model, pack(rows(), CPU))
    found = gradients(model, mine)
    assert_same(found, exact, by=0.995)
    assert any(not torch.equal(found[name], exact[name]) for name in exact)


@pytest.mark.parametrize("learns", LEARNS)
def test_a_step_of_the_optimiser_is_seen_in_bf16(learns: str) -> None:
    """A fused optimiser changes weights without a trace that torch could be asked for."""
    model = prepared("llama", learns)
    optimizer = torch.optim.AdamW(learning_of(model).values(), lr=0.05, fused=True)
    losses = []
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = summed_loss(model, pack(rows(), CPU))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > losses[1] > losses[2]


def test_adapters_that_are_off_add_nothing() -> None:
    model = prepared("llama", "adapters")
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    with torch.no_grad():
        on = hidden_states(model, pack(rows(), CPU))
        for layer in layers:
            layer.enable_adapters(False)
        off = hidden_states(model, pack(rows(), CPU))
    plain = build("llama")
    learning.attach(plain)
    with torch.no_grad():
        assert torch.equal(off, hidden_states(plain, pack(rows(), CPU)))
    assert not torch.equal(on, off)


@pytest.mark.parametrize(("window", "length"), [(None, 40), (12, 40), (None, 16)])
def test_attention_in_pieces_is_torchs_own(window: int | None, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "PIECE", 16)
    monkeypatch.setattr(attention, "KEPT", 16)
    torch.manual_seed(0)
    lengths, heads, key_heads, width = (length, length, 8), 4, 2, 8
    joint = torch.randn(sum(lengths), (heads + 2 * key_heads) * width)
    towards = torch.randn(sum(lengths), heads * width)
    wanted, found, start = joint.clone().requires_grad_(), [], 0
    for size in lengths:
        part = wanted[start : start + size].view(1, size, -1, width).transpose(1, 2)
        back = torch.arange(size)[:, None] - torch.arange(size)[None]
        mask = (back >= 0) & (back < (window or size))
        query, key, value = part.split((heads, key_heads, key_heads), dim=1)
        one = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
        found.append(one.transpose(1, 2).reshape(size, -1))
        start += size
    plain = torch.cat(found)
    plain.backward(towards)
    about = lengths, heads, key_heads, width**-0.5, window
    for keeps in (True, False):
        out, kept = attention.attend(joint, *about, keeps=keeps)
        assert torch.allclose(out, plain, atol=1e-5)
        if keeps:
            back = attention.attend_backward(towards, joint.shape, kept, *about)
            assert wanted.grad is not None
            assert torch.allclose(back, wanted.grad, atol=1e-5)


@pytest.mark.parametrize("learns", ["all", "adapters"])
def test_threads_with_rows_of_their_own_give_the_gradients_of_one(learns: str) -> None:
    model = prepared("llama", learns)
    together = gradients(model, summed_loss(model, pack(rows(), CPU))[0])

    def one(part: list[Any]) -> float:
        loss, _ = summed_loss(model, pack(part, CPU))
        loss.backward()
        return float(loss.detach())

    make_ready(model, Device(CPU, torch.float32), 3)
    works = [partial(one, rows()[:2]), partial(one, rows()[2:3]), partial(one, rows()[3:])]
    threads = torch.get_num_threads()
    for _ in range(2):
        model.zero_grad()
        losses = replicas.run(works, list(learning_of(model).values()))
        found = {name: parameter.grad.clone() for name, parameter in learning_of(model).items()}
        assert_same(found, together)
    assert torch.get_num_threads() == threads
    assert sum(losses) == pytest.approx(float(summed_loss(model, pack(rows(), CPU))[0].detach()), rel=1e-5)


@pytest.mark.parametrize("method", ["lora", "full", "last_layers"])
def test_a_run_on_two_threads_goes_on_to_the_bit_and_learns_as_on_one(
    method: str, make_order: Callable[..., TrainOrder]
) -> None:
    def losses(events: list[Any]) -> list[float]:
        return [event.loss for event in events if event.type in ("step", "evaluated")]

    alone = losses(run(make_order(method, out="alone")))
    try:
        whole = losses(run(make_order(method, out="whole", threads=2)))
        order = make_order(method, out="paused", threads=2)
        first = losses(run(order, {5: Control(verb="pause")}))
        assert first + losses(run(order)) == whole
    finally:
        torch.set_num_threads(1)
    assert whole == pytest.approx(alone, rel=1e-4)
    assert whole != alone


def test_rows_are_shared_evenly() -> None:
    costs = np.random.default_rng(0).integers(20, 500, 13).tolist()
    parts = replicas.shares(costs, 3)
    assert sorted(number for part in parts for number in part) == list(range(13))
    loads = [sum(costs[i] for i in part) for part in parts]
    assert max(loads) - min(loads) < max(costs) / 2
    assert replicas.shares([5], 3) == [[0]]


def test_a_thread_that_trains_asks_no_other_for_help_and_the_process_keeps_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        # As a user of torch sees it inside, before and after an operation that is large enough to be split.
        def seen() -> tuple[int, int]:
            first = torch.get_num_threads()
            torch.ones(600, 600).add_(1).sum()
            return first, torch.get_num_threads()

        assert replicas.run([seen, seen, seen]) == [(1, 1)] * 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_error_of_one_thread_is_told() -> None:
    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        replicas.run([fails, lambda: None])


def test_layers_with_other_adapters_go_through_their_own_forward() -> None:
    model = build("llama")
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))
    learning.attach(model)
    assert learning.pass_of(model) is None
