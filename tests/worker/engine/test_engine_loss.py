"""Packing and loss: the same numbers and gradients as the plain model, and no row sees its neighbour."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from app.contracts.recipe import ScratchSpec
from worker.engine import loss as loss_module
from worker.engine import packing, scratch
from worker.engine.packing import pack
from worker.engine.variants import VariantConfig

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
CPU = torch.device("cpu")


def build(family: str) -> PreTrainedModel:
    torch.manual_seed(3)
    if family in ("llama", "gpt2"):
        spec = ScratchSpec(architecture=family, layers=2, heads=4, kv_heads=2 if family == "llama" else None, width=32)  # type: ignore[arg-type]
        return scratch.create(spec, vocabulary_size=97, end_ids=[2], pad_id=3)
    configs = {
        "mistral": lambda: MistralConfig(**SHAPE, sliding_window=8),
        "qwen2": lambda: Qwen2Config(**SHAPE),
        "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=8),
        "gpt_builder": lambda: VariantConfig(**SHAPE, positions="learned", norm="layer"),
    }
    return AutoModelForCausalLM.from_config(configs[family](), attn_implementation=packing.NAME)


def rows(seed: int = 0, lengths: tuple[int, ...] = (9, 20, 9, 14)) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [(generator.integers(4, 97, n).astype(np.uint32), generator.random(n) < 0.6) for n in lengths]


def reference(model: PreTrainedModel, some: list[tuple[np.ndarray, np.ndarray]], smoothing: float) -> torch.Tensor:
    """Transformers' own forward with its own attention, one row at a time, all logits, summed."""
    model.set_attn_implementation("eager")
    total = torch.zeros(())
    for ids, learn in some:
        tokens = torch.from_numpy(ids.astype(np.int64))
        logits = model(input_ids=tokens[None]).logits[0, :-1]
        chosen = torch.from_numpy(learn[1:])
        total = total + F.cross_entropy(logits[chosen], tokens[1:][chosen], reduction="sum", label_smoothing=smoothing)
    model.set_attn_implementation(packing.NAME)
    return total


@pytest.mark.parametrize("family", sorted(packing.FAMILIES))
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_packed_loss_and_gradients_equal_the_plain_models(
    family: str, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 97 * 16)  # several chunks, the last one short
    model = build(family)
    names = [name for name, _ in model.named_parameters()]
    plain = reference(model, rows(), smoothing)
    wanted = torch.autograd.grad(plain, list(model.parameters()))
    mine, _ = loss_module.summed_loss(model, pack(rows(), CPU), label_smoothing=smoothing)
    found = torch.autograd.grad(mine, list(model.parameters()))
    assert float(mine.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    for name, want, have in zip(names, wanted, found, strict=True):
        assert F.cosine_similarity(want.flatten(), have.flatten(), dim=0) > 0.99999, name
        assert float(have.norm()) == pytest.approx(float(want.norm()), rel=1e-4), name


@pytest.mark.parametrize("family", sorted(packing.FAMILIES))
def test_changing_a_neighbour_changes_no_bit(family: str) -> None:
    model = build(family).eval()
    some, other = rows(), rows()
    other[1] = rows(seed=9)[1]  # the longest, which lies first
    with torch.no_grad():
        before = packing.hidden_states(model, pack(some, CPU))
        after = packing.hidden_states(model, pack(other, CPU))
    assert not torch.equal(before[:24], after[:24])
    assert torch.equal(before[24:], after[24:])


def test_a_family_not_known_to_pack_runs_through_its_own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    packed, _ = loss_module.summed_loss(model, pack(rows(), CPU))
    monkeypatch.setattr(packing, "FAMILIES", frozenset())
    plain, right_plain = loss_module.summed_loss(model.eval(), pack(rows(), CPU))
    assert float(plain.detach()) == pytest.approx(float(packed.detach()), rel=1e-5)
    with torch.no_grad():
        assert loss_module.summed_loss(model, pack(rows(), CPU))[1] == right_plain


def test_accuracy_counts_the_likeliest_token(bases: Callable[..., object]) -> None:
    model = build("llama").eval()
    batch = pack(rows(), CPU)
    with torch.no_grad():
        _, right = loss_module.summed_loss(model, batch)
        logits = model.get_output_embeddings()(packing.hidden_states(model, batch))
    learned = batch.targets >= 0
    assert right == int((logits.argmax(-1) == batch.targets)[learned].sum())


def test_a_row_is_shifted_by_one_and_the_first_token_is_never_a_target() -> None:
    batch = pack([(np.array([5, 6, 7, 8], np.uint32), np.array([True, False, True, True]))], CPU)
    assert batch.ids.tolist() == [5, 6, 7, 0, 0, 0, 0, 0]
    assert batch.targets.tolist() == [-1, 7, 8, -1, -1, -1, -1, -1]
    assert (batch.supervised, batch.tokens) == (2, 3)


def test_noise_on_embeddings_moves_the_loss_only_when_asked() -> None:
    model = build("llama")
    torch.manual_seed(1)
    plain, _ = loss_module.summed_loss(model, pack(rows(), CPU))
    noisy, _ = loss_module.summed_loss(model, pack(rows(), CPU), noise_alpha=5.0)
    assert float(plain.detach()) != float(noisy.detach())
