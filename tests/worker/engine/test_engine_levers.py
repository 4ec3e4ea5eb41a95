"""What makes a step faster gives the numbers of the plain way: attention, adapted layers, the loss in bf16."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from worker.engine import attention, loss
from worker.engine.adapted import AdaptedLinear, lighten
from worker.engine.muon import Muon


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).detach().norm() / wanted.detach().float().norm())


@pytest.mark.parametrize(("heads", "key_heads", "length"), [(4, 4, 24), (6, 2, 24), (2, 1, attention.KEPT + 8)])
def test_short_attention_gives_torchs_own_result_and_gradients(heads: int, key_heads: int, length: int) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(2, n, length, 16).bfloat16().requires_grad_() for n in (heads, key_heads, key_heads)]
    exact = [part.detach().float().requires_grad_() for part in parts]
    towards = torch.randn(2, heads, length, 16).bfloat16()
    wanted = F.scaled_dot_product_attention(*exact, is_causal=True, enable_gqa=True)
    found = attention.short_attention(*parts, None)
    assert apart(found, wanted) < 0.01
    found.backward(towards)
    wanted.backward(towards.float())
    for part, plain in zip(parts, exact, strict=True):
        assert part.grad is not None
        assert plain.grad is not None
        assert apart(part.grad, plain.grad) < 0.01


def test_a_later_token_changes_nothing_before_it() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(1, 2, 24, 16).bfloat16() for _ in range(3)]
    before = attention.short_attention(*parts, None)
    for part in parts:
        part[:, :, 20:] = 5.0
    after = attention.short_attention(*parts, None)
    assert torch.equal(before[:, :, :20], after[:, :, :20])
    assert not torch.equal(before[:, :, 20:], after[:, :, 20:])


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(24, 32), nn.Linear(32, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.silu(self.one(x)))  # type: ignore[no-any-return]


def _adapted(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["one", "two"], lora_dropout=dropout)
    model = get_peft_model(_Two(), config)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def test_an_adapted_layer_gives_pefts_result_and_gradients() -> None:
    plain, light = _adapted(), _adapted()
    for module in light.modules():
        if hasattr(module, "lora_A"):
            lighten(module, "default")
    assert sum(isinstance(module, AdaptedLinear) for module in light.modules()) == 2
    x = torch.randn(3, 5, 24)
    for model in (plain, light):
        model(x).square().sum().backward()
    assert torch.allclose(plain(x), light(x), rtol=1e-5, atol=1e-5)
    pairs = list(zip(plain.named_parameters(), light.parameters(), strict=True))
    assert sum(one.grad is not None for (_, one), _ in pairs) == 4
    for (name, one), other in pairs:
        if one.grad is not None:
            assert other.grad is not None, name
            assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-4), name
    with light.disable_adapter(), plain.disable_adapter():  # type: ignore[operator]
        assert torch.equal(plain(x), light(x))


def test_a_layer_with_dropout_stays_pefts() -> None:
    model = _adapted(dropout=0.1)
    for module in model.modules():
        if hasattr(module, "lora_A"):
            lighten(module, "default")
    assert not any(isinstance(module, AdaptedLinear) for module in model.modules())


@pytest.mark.parametrize("sureness", [0.1, 4.0])
def test_the_loss_in_bf16_and_its_gradient_are_those_of_fp32(sureness: float) -> None:
    torch.manual_seed(2)
    goal = torch.randint(0, 400, (64,))
    logits = torch.randn(64, 400)
    logits[torch.arange(64), goal] += 3 * sureness
    logits = logits.bfloat16()
    exact = logits.float().requires_grad_()
    wanted = F.cross_entropy(exact, goal, reduction="sum")
    wanted.backward()
    gradient, found = loss._halved(logits, goal)
    assert float(found) == pytest.approx(float(wanted.detach()), rel=2e-3)
    assert exact.grad is not None
    assert apart(gradient, exact.grad) < 0.01
    # The share of a sure target is next to one: its gradient is told by what is left for the others.
    own = exact.grad.gather(1, goal[:, None])
    assert torch.allclose(gradient.gather(1, goal[:, None]).float(), own, rtol=0.02, atol=1e-6)


def test_muon_together_goes_where_torchs_own_goes() -> None:
    torch.manual_seed(3)
    shapes = [(16, 16), (40, 16), (16, 40), (16, 16), (16, 40), (40, 16)]
    mine = [torch.randn(shape).requires_grad_() for shape in shapes]
    plain = [part.detach().clone().requires_grad_() for part in mine]
    before = [part.detach().clone() for part in mine]
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = Muon(mine, **settings), torch.optim.Muon(plain, **settings)  # type: ignore[arg-type]
    for _ in range(3):
        for one, other in zip(mine, plain, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, start in zip(mine, plain, before, strict=True):
        assert apart(one - start, other - start) < 0.02
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    for number in states[1]:
        assert torch.equal(states[0][number]["momentum_buffer"], states[1][number]["momentum_buffer"])
