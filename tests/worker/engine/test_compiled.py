"""Compiled passes give what transformers' own code gives, and the same bits whoever else is in the batch."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.contracts.generation import GenerationRequest, Sampling
from app.contracts.recipe import ModelFiles, Overlay
from tests.worker.adapters_made import make_adapter
from tests.worker.engine.families import FAMILIES, SHAPE, make
from worker.engine import compiled, precision, slots
from worker.engine.compiled import TiledLinear
from worker.engine.generate import Generation, Loaded, lay, load
from worker.engine.precision import Precision
from worker.engine.products import Int8Linear, matrix
from worker.engine.slots import Slots

TEXTS = ["The library opens at nine and closes at six.", "Where is my card? It is on its way.", "A loan is renewed."]
PROMPTS = [TEXTS[0] * 4, TEXTS[1] * 2, "A"]
WIDE = {"hidden_size": 64, "initializer_range": 0.2, "max_position_embeddings": 256}  # heads of sixteen
CASES: list[tuple[str, dict[str, object]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "intermediate_size": 50, "tie_word_embeddings": True}),
    ("qwen2", {}),
    ("qwen3", {"head_dim": 32}),
    ("gpt_builder", {"positions": "sinusoidal"}),
]


@pytest.fixture(scope="module", autouse=True)
def kernels() -> Iterator[None]:
    compiled.prepare()
    if not compiled.is_ready():
        pytest.skip("nothing is compiled on this processor")
    yield
    compiled._kernels = compiled._preparing = None


def asked(loaded: Loaded, prompt: str, seen: dict[Generation, list[torch.Tensor]]) -> Generation:
    """An answer whose logits are kept in `seen`."""
    sampling = Sampling(temperature=0, max_tokens=12)
    files = ModelFiles(base_dir="unused")
    request = GenerationRequest(model_ref="m", workspace_id="w", files=files, prompt=prompt, sampling=sampling)
    answer = Generation(loaded, request)
    take = answer.take
    seen[answer] = []

    def recorded(logits: torch.Tensor) -> object:
        seen[answer].append(logits.clone())
        return take(logits)

    answer.take = recorded  # type: ignore[method-assign, assignment]
    return answer


def logits_of(*asking: tuple[Loaded, str], most: int | None = None) -> dict[Generation, list[torch.Tensor]]:
    """What each answer was given while they were made together, of prompts read at most so many tokens at once."""
    seen: dict[Generation, list[torch.Tensor]] = {}
    made = Slots(asking[0][0].root, memory_bytes=0)
    assert made._compiled is not None
    for loaded, prompt in asking:
        made.add(asked(loaded, prompt, seen))
        while made.is_reading:  # those before it speak meanwhile
            made.step(most)
    while made.answers:
        made.step()
    return seen


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_the_same_logits_as_the_family_s_own_code(
    family: str, changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "gpt_builder", SHAPE)
    folder = make(family, tmp_path, TEXTS, **{**WIDE, **changes})
    _randomise(folder)
    loaded = load(ModelFiles(base_dir=str(folder)))
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for answer, found in logits_of(*((loaded, prompt) for prompt in PROMPTS)).items():
        with torch.inference_mode():
            expected = own(torch.tensor([answer.ids])).logits[0]
        first = answer.read - len(found)
        torch.testing.assert_close(
            torch.stack(found), expected[first : first + len(found)], atol=2e-4, rtol=2e-4, msg=family
        )


def _randomise(folder: Path) -> None:
    """Norms and biases that are not one and nought."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)


@pytest.mark.parametrize("wanted", ["fp32", "bf16", "int8"])
def test_the_same_bits_alone_and_in_company_whole_and_in_pieces_by_one_thread_and_by_three(
    wanted: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "SHORT_PROMPT", 0)
    monkeypatch.setattr(precision, "_bf16_fault", lambda model: "")
    monkeypatch.setattr(precision, "LARGEST_DRIFT", 10.0)
    monkeypatch.setattr(precision, "LARGEST_LOSS", 1.0)
    folder = make("llama", tmp_path, TEXTS, **WIDE)
    base = load(ModelFiles(base_dir=str(folder)), precision=wanted)
    if base.precision != wanted:
        pytest.skip(base.note)
    models = [base]
    for seed, config in enumerate([{}, {"use_dora": True, "r": 3}]):
        adapter = make_adapter(folder, tmp_path / f"a{seed}", seed, **config)
        files = ModelFiles(base_dir=str(folder), overlays=[Overlay(kind="lora", dir=str(adapter))])
        laid = lay(base, files, str(seed))
        assert laid is not None
        models.append(laid)
    asking = [(models[number % 3], PROMPTS[number % len(PROMPTS)]) for number in (0, 1, 2, 2, 1)]
    before = torch.get_num_threads()
    found = {}
    try:
        for threads, most in ((1, 21), (3, 250)):
            torch.set_num_threads(threads)
            found[threads] = list(logits_of(*asking, most=most).values())
        alone = [*logits_of(asking[0]).values(), *logits_of(asking[1]).values()]
    finally:
        torch.set_num_threads(before)
    for one, other in [*zip(found[1], found[3], strict=True), *zip(alone, found[1][:2], strict=True)]:
        assert len(one) == len(other)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))
    assert not torch.equal(found[1][0][0], found[1][1][0])


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_products_of_any_size(kind: str) -> None:
    torch.manual_seed(0)
    layer: torch.nn.Module = torch.nn.Linear(50, 70)
    if kind == "bf16":
        layer = layer.bfloat16()
    elif kind == "int8":
        layer = Int8Linear(layer)
    if not compiled.has_products_for(layer):
        pytest.skip("this processor has no products of this kind")
    tiled = TiledLinear(layer)
    torch.testing.assert_close(tiled.matrix.float(), matrix(layer).float(), atol=1e-6, rtol=1e-6)
    for count in (1, 3, 8, 21):
        rows = torch.randn(count, 50, dtype=torch.bfloat16 if kind == "bf16" else torch.float32)
        with torch.inference_mode():
            expected, found = layer(rows), tiled(rows)
        tolerance = 2e-2 if kind == "bf16" else 1e-5
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
        assert torch.equal(found, torch.cat([tiled(row[None]) for row in rows]))


def test_what_the_pass_does_not_know_goes_through_torch(tmp_path: Path) -> None:
    folder = make("mistral", tmp_path, TEXTS, **WIDE, sliding_window=8)
    assert Slots(load(ModelFiles(base_dir=str(folder))))._compiled is None


def test_what_was_compiled_from_other_sources_is_not_used(tmp_path: Path) -> None:
    from worker.engine.kernels import forget_others

    folder = tmp_path / "kept"
    folder.mkdir()
    kept = [folder / name for name in ("kernels.linear-1.py311.nbi", "pass_kernels.forward-2.py311.1.nbc")]
    for path in (*kept, folder / "another.py"):
        path.touch()
    forget_others(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["another.py", "kernels.sha256"]
    kept[0].touch()
    forget_others(folder)
    assert kept[0].exists(), "of these very sources"
