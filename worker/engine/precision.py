"""Number formats to answer in: exact fp32, bf16 where it is faster, int8 where the answers stay as good."""

import time
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from app.text.tokens import encode_text
from worker.engine.devices import computes_bf16, processor_flags
from worker.engine.products import Int8Linear, PackedLinear, matrix

Precision = Literal["fp32", "bf16", "int8"]
LARGEST_LOSS = 0.01  # of accuracy: one point
LARGEST_DRIFT = 0.02  # nats a token between what both formats foretell (Kullback-Leibler)
_PROBE = (
    "The library opens at nine and closes at six, except on Sundays. Please bring your card when you want to borrow "
    "books. Which questions do people ask most often? They ask how to renew a loan, where the reading room is, and "
    'what a lost book costs. {"name": "Reading room", "floor": 2, "open": true} A loan is renewed by telephone or at '
    "the desk; a lost book costs what it takes to buy it again, and nothing more."
)
_PROBE_TOKENS = 128
_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")


def join_norms(model: PreTrainedModel) -> None:
    """Let every root-mean-square norm be one operation instead of seven; the same to the last bits of fp32."""
    for layer in model.modules():
        if is_rms(layer):
            layer.forward = norm_of(layer)


def is_rms(layer: nn.Module) -> bool:
    """Whether a layer is one of the root-mean-square norms that are known to be alike."""
    return type(layer).__name__ in _NORMS


def norm_of(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """A norm as a function of rows (…, width)."""
    if not is_rms(layer):
        return layer.forward
    norm: Any = layer
    shape, epsilon = tuple(norm.weight.shape), norm.variance_epsilon
    return lambda rows: F.rms_norm(rows, shape, norm.weight, epsilon)


def applied(model: PreTrainedModel, tokenizer: Tokenizer, wanted: Precision) -> tuple[PreTrainedModel, Precision, str]:
    """A model of fp32 weights on the CPU in the wanted format, the format that it got, and why where it is another."""
    if wanted == "bf16":
        why = _bf16_fault(model)
        return (model, "fp32", why) if why else (model.to(torch.bfloat16), "bf16", "")  # type: ignore[arg-type]
    if wanted == "int8":
        if not computes_int8():
            return model, "fp32", "This processor has no fast int8 products, so fp32 is used."
        return _quantised(model, tokenizer)
    return model, "fp32", ""


def computes_int8() -> bool:
    """True where int8 products run in hardware; others are slower and may overflow."""
    return not processor_flags().isdisjoint(("avx512_vnni", "avx_vnni", "amx_int8"))


def _bf16_fault(model: PreTrainedModel) -> str:
    """Why bf16 brings nothing here; empty where it is faster, by a product of the model's own size."""
    if not computes_bf16(torch.device("cpu")):
        return "This processor does not compute in bf16, so fp32 is used."
    weights = max(
        (matrix(layer) for layer in model.modules() if isinstance(layer, nn.Linear | Conv1D)), key=lambda w: w.numel()
    )[:4096]
    rows = torch.ones(8, weights.shape[1])
    if _least_s(rows, weights) <= 1.1 * _least_s(rows.bfloat16(), weights.bfloat16()):
        return "On this processor bf16 is no faster for this model, so fp32 is used."
    return ""


def _least_s(rows: Tensor, weights: Tensor) -> float:
    found = []
    for _ in range(5):
        began = time.perf_counter()
        F.linear(rows, weights)
        found.append(time.perf_counter() - began)
    return min(found)


@torch.inference_mode()
def _quantised(model: PreTrainedModel, tokenizer: Tokenizer) -> tuple[PreTrainedModel, Precision, str]:
    ids = encode_text(tokenizer, _PROBE)[: min(_PROBE_TOKENS, getattr(model.config, "max_position_embeddings", 128))]
    exact = _foretold(model, ids)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    quantise(model)
    fast, targets = _foretold(model, ids), torch.tensor(ids[1:])
    drift = float((exact.exp() * (exact - fast)).sum(-1).mean())
    right, right_now = (float((told.argmax(-1) == targets).float().mean()) for told in (exact, fast))
    if right_now >= right - LARGEST_LOSS and drift <= LARGEST_DRIFT:
        return model, "int8", ""
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    why = (
        f"In int8 this model foretells {right_now:.1%} of a text's tokens instead of {right:.1%} and drifts by "
        f"{drift:.2f} nats a token; so fp32 is used."
    )
    return model, "fp32", why


def quantise(model: PreTrainedModel) -> None:
    """Replace every linear layer by its int8 form, in place."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear | Conv1D | PackedLinear):
            model.set_submodule(name, Int8Linear(layer))


def _foretold(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """Log-probabilities (tokens - 1, vocabulary) of what follows each token of a text."""
    return model(input_ids=torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
