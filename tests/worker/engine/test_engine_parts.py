"""The parts of the loop on their own: rows, order, schedules, optimisers, adapters, tokenizers."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel

from app.contracts.conversation import Example
from app.contracts.recipe import ModelFiles, Overlay, RecipeSpec, TrainOrder
from app.text.template import CHATML, ChatTemplate
from tests.worker.engine.engine_material import turns, write_version
from worker.engine import data, devices, encoding, loading, optim, prepare, tokenising, tokenizer
from worker.engine.encoding import Encoder
from worker.engine.errors import BadData
from worker.engine.methods.last_layers import LastLayers
from worker.engine.methods.lora import Lora, principal_part
from worker.engine.tokenizer_files import load_tokenizer

Bases = Callable[..., Path]
MakeOrder = Callable[..., TrainOrder]


def recipe(**changes: Any) -> RecipeSpec:
    return RecipeSpec.model_validate({"method": "lora", "base_source": "starter", **changes})


def letters(example: Example) -> tuple[list[int], list[bool]]:
    """One token a letter; only what the assistant says is learned."""
    if example.kind == "text":
        return list(range(len(example.text))), [True] * len(example.text)
    ids = [ord(letter) for message in example.messages for letter in message.content]
    return ids, [message.role == "assistant" for message in example.messages for _ in message.content]


@given(length=st.integers(2, 200), window=st.integers(16, 50))
def test_windows_predict_every_token_of_a_text_exactly_once(length: int, window: int) -> None:
    pieces, _ = data.fit(Example(rid=0, kind="text", text="x" * length), letters, window)
    predicted = [token for ids, learn in pieces for token, on in zip(ids[1:], learn[1:], strict=True) if on]
    assert predicted == list(range(1, length))
    assert max(len(ids) for ids, _ in pieces) <= window


def test_a_long_conversation_loses_whole_turns_from_its_front_and_keeps_its_system_message() -> None:
    messages = [
        {"role": "system", "content": "S" * 5},
        *turns("a" * 10, "b" * 10, "c" * 10, "d" * 10, "e" * 5, "f" * 5),
    ]
    example = Example.model_validate({"rid": 0, "kind": "chat", "messages": messages})
    ((ids, learn),), was_cut = data.fit(example, letters, 36)
    assert "".join(map(chr, ids)) == "SSSSS" + "c" * 10 + "d" * 10 + "eeeee" + "fffff"
    assert sum(learn) == 15
    assert was_cut


def test_a_last_answer_that_does_not_fit_gives_no_row() -> None:
    example = Example.model_validate({"rid": 0, "kind": "chat", "messages": turns("a", "b" * 40)})
    assert data.fit(example, letters, 20) == ([], True)


def test_each_epoch_has_its_own_order_and_the_same_one_again(tmp_path: Path) -> None:
    rows = [{"messages": turns("q", "a" * n)} for n in range(1, 30)] + [
        {"kind": "text", "text": "t" * 30} for _ in range(30)
    ]
    version = write_version(tmp_path / "v", rows)
    tokens = data.tokenised(version, "train", tmp_path / "cache", letters, {}, 64)
    first, second = data.order(tokens, 1, 0), data.order(tokens, 1, 1)
    assert sorted(first) == sorted(second) == list(range(59))
    assert first.tolist() != second.tolist()
    assert first.tolist() == data.order(tokens, 1, 0).tolist()
    last = data.order(tokens, 1, 0, chats_last_share=0.2)
    assert sorted(last) == list(range(59))
    lengths = np.cumsum(tokens.lengths[last][::-1])
    tail = last[::-1][: int(np.searchsorted(lengths, 0.15 * tokens.offsets[-1]))]
    assert len(tail) > 3
    assert tokens.is_chat[tail].all()


def test_tokens_are_made_once_and_again_when_the_template_changes(tmp_path: Path) -> None:
    version = write_version(tmp_path / "v", [{"messages": turns("q", "answer")}])
    calls = []

    def counted(example: Example) -> tuple[list[int], list[bool]]:
        calls.append(example.rid)
        return letters(example)

    for key in ({"template": "a"}, {"template": "a"}, {"template": "b"}):
        rows = data.tokenised(version, "train", tmp_path / "cache", counted, key, 64)
    assert len(calls) == 2
    assert rows.row(0)[0].tolist() == [ord(letter) for letter in "qanswer"]
    assert rows.supervised_tokens == 6


def test_of_many_ways_to_tokens_the_oldest_go_and_one_being_read_stays_readable(tmp_path: Path) -> None:
    version, cache = write_version(tmp_path / "v", [{"messages": turns("q", "answer")}]), tmp_path / "cache"
    first = data.tokenised(version, "train", cache, letters, {"way": 0}, 64)
    for number, folder in enumerate(sorted(cache.iterdir())):
        os.utime(folder, (number, number))
    # A folder of another run that is renamed between being listed and being looked at.
    (cache / "gone").symlink_to(tmp_path / "nowhere")
    for way in range(1, data.KEPT_FOLDERS + 1):
        data.tokenised(version, "train", cache, letters, {"way": way}, 64)
    assert len([path for path in cache.iterdir() if path.is_dir()]) == data.KEPT_FOLDERS
    assert first.row(0)[0].tolist() == [ord(letter) for letter in "qanswer"]
    # The first is gone: it is made again.
    again = data.tokenised(version, "train", cache, letters, {"way": 0}, 64)
    assert again.row(0)[0].tolist() == first.row(0)[0].tolist()


def test_tokens_that_cannot_be_made_leave_nothing_on_the_disk(tmp_path: Path) -> None:
    def refuse(_: Example) -> tuple[list[int], list[bool]]:
        raise BadData("Row 0: no.")

    version, cache = write_version(tmp_path / "v", [{"messages": turns("q", "answer")}]), tmp_path / "cache"
    with pytest.raises(BadData):
        data.tokenised(version, "train", cache, refuse, {}, 64)
    assert list(cache.iterdir()) == []


def test_tokens_made_ahead_are_those_that_the_run_asks_for(
    make_order: MakeOrder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = make_order("lora")
    order.cache_dir = str(tmp_path / "ahead")
    monkeypatch.setattr(tokenising, "ROWS_AHEAD", 1)
    tokenising.begin(order)
    child = tokenising._under_way[order.out_dir]
    assert child.wait(60) == 0
    made = {path: path.stat().st_ino for path in Path(order.cache_dir).rglob("*.u32")}
    assert len(made) == 2
    list(prepare.prepare(order, devices.choose(order.recipe), 1))
    assert {path: path.stat().st_ino for path in Path(order.cache_dir).rglob("*.u32")} == made


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 0.1, 9: 1.0, 50: 1.0, 99: 1.0}),
        ("linear", {10: 1.0, 55: 0.55, 99: 0.11}),
        ("cosine", {10: 1.0, 55: 0.55, 99: 0.10}),
        ("wsd", {10: 1.0, 69: 1.0, 85: 0.55, 99: 0.13}),
    ],
)
def test_schedules_at_chosen_steps(schedule: str, expected: dict[int, float]) -> None:
    spec = recipe(schedule=schedule, warmup_steps=10, final_learning_rate_ratio=0.1, decay_share=0.3)
    for step, factor in expected.items():
        assert optim.rate_factor(step, 100, spec) == pytest.approx(factor, abs=0.005)


def test_b_matrices_learn_faster_with_lora_plus(bases: Bases) -> None:
    spec = recipe(learning_rate=1e-3, lora={"rank": 4, "b_rate_ratio": 16})
    model = loading.load_model(ModelFiles(base_dir=str(bases("llama"))), torch.float32)
    Lora().prepare(model, spec)
    named = optim.learning_parameters(model)
    optimizers = optim.build(named, spec)
    rates = {id(p): group["lr"] for group in optimizers["adamw"].param_groups for p in group["params"]}
    assert {rates[id(p)] for name, p in named if "lora_A" in name} == {1e-3}
    assert {rates[id(p)] for name, p in named if "lora_B" in name} == {1.6e-2}
    assert len(rates) == len(named) == 28


def test_muon_takes_the_inner_matrices_and_adamw_the_rest(bases: Bases) -> None:
    model = loading.load_model(ModelFiles(base_dir=str(bases("llama"))), torch.float32)
    named = optim.learning_parameters(model)
    embedding = model.get_input_embeddings().weight
    spec = recipe(optimizer="muon", learning_rate=7e-3, adamw_learning_rate=4e-3, method="full")
    optimizers = optim.build(named, spec, {id(embedding)})
    by_muon = {id(p) for group in optimizers["muon"].param_groups for p in group["params"]}
    names = {name for name, p in named if id(p) in by_muon}
    assert len(names) == 14
    assert all("_proj" in name for name in names)
    assert optimizers["adamw"].param_groups[0]["params"] == [embedding]
    assert optimizers["adamw"].param_groups[0]["lr"] == 4e-3


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("stabilised", [False, True])
def test_a_pissa_start_changes_nothing_and_its_file_is_a_plain_adapter_for_the_base(
    architecture: str, stabilised: bool, bases: Bases, tmp_path: Path
) -> None:
    files = ModelFiles(base_dir=str(bases(architecture)))
    spec = recipe(lora={"rank": 4, "alpha": 6, "initialisation": "pissa", "rank_stabilised": stabilised})
    ids = torch.arange(4, 20)[None]
    base = loading.load_model(files, torch.float32)
    before = base(input_ids=ids).logits.detach()
    model = loading.load_model(files, torch.float32)
    method = Lora()
    method.prepare(model, spec)
    torch.testing.assert_close(model(input_ids=ids).logits, before, atol=1e-4, rtol=1e-4)

    torch.manual_seed(0)
    with torch.no_grad():
        for _, parameter in optim.learning_parameters(model):
            parameter.add_(torch.randn_like(parameter) * 0.05)
    trained = model(input_ids=ids).logits.detach()
    assert (trained - before).abs().max() > 1e-3
    method.write(model, tmp_path / "adapter")
    plain = PeftModel.from_pretrained(loading.load_model(files, torch.float32), tmp_path / "adapter")
    torch.testing.assert_close(plain(input_ids=ids).logits, trained, atol=1e-4, rtol=1e-4)
    merged = loading.apply_overlay(base, Overlay(kind="lora", dir=str(tmp_path / "adapter")))
    torch.testing.assert_close(merged(input_ids=ids).logits, trained, atol=1e-4, rtol=1e-4)

    again, reader = loading.load_model(files, torch.float32), Lora()
    reader.prepare(again, spec)
    reader.read(again, tmp_path / "adapter")
    for (name, one), (_, other) in zip(again.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_the_principal_part_is_the_best_one_of_its_rank() -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 20)
    a, b = principal_part(weight, 3, scaling=2.0)
    left = torch.linalg.svdvals(weight)[3:].square().sum().sqrt()
    torch.testing.assert_close((weight - 2.0 * b @ a).norm(), left)


def test_last_layers_leave_the_rest_untouched_and_refuse_a_shared_head(bases: Bases) -> None:
    model = loading.load_model(ModelFiles(base_dir=str(bases("llama"))), torch.float32)
    with pytest.raises(BadData, match="cannot be trained alone"):
        LastLayers().prepare(model, recipe(method="last_layers", last_layers=1, train_head=True))
    with pytest.raises(BadData, match="has 2"):
        LastLayers().prepare(model, recipe(method="last_layers", last_layers=3))
    LastLayers().prepare(model, recipe(method="last_layers", last_layers=1))
    learning = {name for name, _ in optim.learning_parameters(model)}
    assert len(learning) == 10
    assert all(name.startswith("model.layers.1.") or name == "model.norm.weight" for name in learning)


def test_the_bpe_tokenizer_knows_every_byte_splits_digits_and_puts_special_tokens_first() -> None:
    learned = tokenizer.train_bpe(["the cat sat on the mat in 2024 and 2025 " * 20], 300)
    assert [learned.id_to_token(i) for i in range(4)] == tokenizer.SPECIAL
    assert learned.decode(learned.encode("żółw 🐢 2024\n\ttail").ids) == "żółw 🐢 2024\n\ttail"
    assert not any(len(token) > 1 and any(c.isdigit() for c in token) for token in learned.get_vocab())


def test_the_character_tokenizer_round_trips_and_marks_the_unknown() -> None:
    learned = tokenizer.train_characters(["héllo\nworld"])
    assert learned.decode(learned.encode("hello\nwörld", add_special_tokens=False).ids) == "hllo\nwrld"
    assert len(learned.encode("hé\n").ids) == 3
    with pytest.raises(BadData, match="hold no text"):
        tokenizer.train_characters([""])


def test_the_end_token_of_an_answer_is_learned_and_the_question_is_not(bases: Bases) -> None:
    words = load_tokenizer(bases("llama"))
    encoder = Encoder(words, ChatTemplate(CHATML), 0, system_prompt="Be brief.")
    example = Example.model_validate({"rid": 0, "kind": "chat", "messages": turns("What colour?", "The red.")})
    ids, learn = encoder.example(example)
    learned = words.decode([i for i, on in zip(ids, learn, strict=True) if on], skip_special_tokens=False)
    assert learned == "The red.<|im_end|>"
    assert words.decode(ids, skip_special_tokens=False).startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_many_rows_become_the_same_tokens_sooner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = write_version(
        tmp_path / "version",
        [{"messages": turns(f"Where is  it, {i}?", f"In room {i * 37}\n\n<|im_end|> café {i}.")} for i in range(40)],
    )
    learned = tokenizer.train_bpe(["Where is it? In room 3, the café."] * 3, 300)
    plain = Encoder(learned, ChatTemplate(CHATML), 0, system_prompt="Be brief.")
    monkeypatch.setattr(tokenising, "ACCELERATED_ROWS", 40)
    fast = tokenising._encode(plain, version)
    assert encoding.accelerated(plain, data.read_examples(version, "train")).accelerator is not None
    assert fast != plain.example
    rows = [
        data.tokenised(version, "train", tmp_path / name, encode, {}, 200)
        for name, encode in (("plain", plain.example), ("fast", fast))
    ]
    assert len(rows[0]) == len(rows[1]) == 40
    assert np.array_equal(rows[0].ids, rows[1].ids)
    assert np.array_equal(rows[0].learn, rows[1].learn)
    monkeypatch.setattr(tokenising, "ACCELERATED_ROWS", 41)
    assert tokenising._encode(plain, version) == plain.example
