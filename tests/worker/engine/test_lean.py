"""The lean pass and joined, packed products give what transformers' own code gives, for every family."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.contracts.generation import GenerationRequest, Sampling
from app.contracts.recipe import ModelFiles
from tests.worker.engine.families import FAMILIES, SHAPE, make
from worker.engine.generate import Generation, load
from worker.engine.products import PackedLinear, matrix, packs
from worker.engine.slots import Slots

TEXTS = ["The library opens at nine and closes at six.", "Where is my card? It is on its way.", "A loan is renewed."]
PROMPTS = [TEXTS[0], TEXTS[1] * 2, "A"]
CASES: list[tuple[str, dict[str, object]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True}),
    ("mistral", {"sliding_window": 8}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt_builder", {"positions": "learned", "norm": "layer"}),
    ("gpt_builder", {"positions": "sinusoidal"}),
]


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_the_same_logits_and_words_as_the_family_s_own_code(
    family: str, changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "gpt_builder", SHAPE)
    folder = make(family, tmp_path, TEXTS, **{"initializer_range": 0.2, **changes})
    loaded = load(ModelFiles(base_dir=str(folder)))
    if packs():
        assert any(isinstance(layer, PackedLinear) for layer in loaded.model.modules())
    slots, answers = Slots(loaded), []
    seen: dict[Generation, list[torch.Tensor]] = {}
    for prompt in PROMPTS:
        request = GenerationRequest(
            model_ref="m",
            workspace_id="w",
            files=ModelFiles(base_dir="unused"),
            prompt=prompt,
            sampling=Sampling(temperature=0, max_tokens=12),
        )
        answer = Generation(loaded, request)
        answers.append(answer)
        slots.add(answer)
        _record(answer, seen)
    while slots.answers:
        slots.step()
    for name, layer in AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_modules():
        if isinstance(layer, torch.nn.Linear):
            torch.testing.assert_close(matrix(loaded.model.get_submodule(name)), layer.weight, msg=name)
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for answer in answers:
        with torch.inference_mode():
            expected = own(torch.tensor([answer.ids])).logits[0]
        found = torch.stack(seen[answer])
        first = answer.read - len(found)
        torch.testing.assert_close(found, expected[first : first + len(found)], atol=2e-4, rtol=2e-4)


def _record(answer: Generation, seen: dict[Generation, list[torch.Tensor]]) -> None:
    """Keep the logits that an answer is given."""
    take = answer.take

    def recorded(logits: torch.Tensor) -> object:
        seen.setdefault(answer, []).append(logits.clone())
        return take(logits)

    answer.take = recorded  # type: ignore[method-assign, assignment]
