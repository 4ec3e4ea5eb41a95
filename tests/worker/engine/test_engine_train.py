"""The loop: every method learns, tells what happens in order, obeys commands and leaves a model that works."""

import json
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.contracts.conversation import Message
from app.contracts.events import Control, EngineEvent
from app.contracts.recipe import ModelFiles, Overlay, TrainOrder
from tests.worker.engine.engine_material import Script, of, run, turns, write_version
from worker.engine import packing, sharing
from worker.engine.answers import Prompt, answer
from worker.engine.errors import BadData, Diverged, OutOfMemory
from worker.engine.generate import load

MakeOrder = Callable[..., TrainOrder]
METHODS = {
    "lora": {"lora": {"rank": 8, "alpha": 16}, "learning_rate": 2e-2},
    "last_layers": {"last_layers": 1},
    "full": {},
    "scratch": {"learning_rate": 2e-2, "adamw_learning_rate": 2e-2, "epochs": 25},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_and_leaves_a_working_model(method: str, make_order: MakeOrder) -> None:
    order = make_order(method, **{"epochs": 10, "evaluate_every_steps": 20, **METHODS[method]})
    events = run(order)
    steps, evaluations, ended = of(events, "step"), of(events, "evaluated"), events[-1]
    assert [step.step for step in steps] == list(range(1, 6 * int(order.recipe.epochs) + 1))
    assert steps[0].loss > 5  # the base is random
    assert evaluations[-1].loss < steps[0].loss
    assert evaluations[-1].accuracy > 0.5
    assert ended.type == "ended"
    assert ended.reason == "completed"
    kind = {"lora": "lora", "last_layers": "layers"}.get(method, "whole")
    assert ended.model_kind == kind
    model_dir = Path(order.out_dir) / ended.model_dir
    assert json.loads((model_dir / "recipe.json").read_text())["method"] == method
    assert json.loads((model_dir / "run.json").read_text())["steps"] == len(steps)
    assert not list(model_dir.rglob("*.bin")) + list(model_dir.rglob("*.pt"))


def test_a_full_run_answers_what_it_learned_from_its_files_alone(make_order: MakeOrder) -> None:
    order = make_order("full", epochs=80, evaluate_every_steps=1000, learning_rate=5e-3)
    ended = run(order)[-1]
    folder = Path(order.out_dir) / "model"
    loaded = load(ModelFiles(base_dir=str(folder)))
    said = answer(loaded, Prompt("", messages=[Message(role="user", content="What colour is the boat?")]), 40)
    assert said.ended
    assert said.text.startswith("The boat is ")
    assert said.text.endswith("as boats are here.")
    assert ended.stop_test["ended"] == 8


def test_events_come_in_order_and_the_checkpoint_follows_its_evaluation(make_order: MakeOrder) -> None:
    kinds = [event.type for event in run(make_order("lora", epochs=1, max_steps=4, evaluate_every_steps=2))]
    assert kinds.index("started") > kinds.index("progress")
    after_start = [kind for kind in kinds[kinds.index("started") + 1 :] if kind != "sample"]
    assert after_start == ["step", "step", "evaluated", "checkpoint"] * 2 + ["progress", "ended"]


def test_the_first_loss_is_the_mean_over_supervised_tokens_whatever_the_micro_batch(make_order: MakeOrder) -> None:
    losses = []
    for micro in (1, 2, 8):
        order = make_order("full", out=f"m{micro}", micro_batch_size=micro, max_steps=4, sample_prompts=["x"])
        losses.append([step.loss for step in of(run(order), "step")])
    assert losses[0] == pytest.approx(losses[2], rel=2e-5)
    assert losses[1] == pytest.approx(losses[2], rel=2e-5)


def test_stop_and_keep_leaves_a_model(make_order: MakeOrder) -> None:
    events = run(make_order("lora"), {3: Control(verb="stop_and_keep")})
    assert events[-1].reason == "stopped_and_kept"
    assert events[-1].model_dir == "model"
    assert of(events, "step")[-1].step == 3


def test_when_its_hours_are_used_up_it_keeps_the_best_whatever_was_spent_before(make_order: MakeOrder) -> None:
    order = make_order("lora", max_hours=10)
    paused = run(order.model_copy(update={"spent_s": 30_000}), {3: Control(verb="pause")})
    assert paused[-1].reason == "paused"
    # Whoever starts it again may not know what was spent: its checkpoint does.
    shorter = order.recipe.model_copy(update={"max_hours": 30_000 / 3600})
    events = run(order.model_copy(update={"recipe": shorter}))
    assert (events[-1].reason, events[-1].step, events[-1].model_dir) == ("time_is_up", 3, "model")
    assert not of(events, "step")
    late = make_order("lora", out="late", max_hours=1).model_copy(update={"spent_s": 4000})
    assert [step.step for step in of(run(late), "step")] == [1]


def test_hours_and_the_steps_made_for_them_change_while_it_trains(make_order: MakeOrder) -> None:
    order = make_order("lora", max_hours=10, max_steps=3, epochs=5).model_copy(update={"spent_s": 30_000})
    longer = Control(verb="adjust", name="max_steps", value=9)
    less = Control(verb="adjust", name="max_hours", value=30_000 / 3600)
    events = run(order, {2: longer, 5: less})
    assert [(one.name, one.total_steps) for one in of(events, "adjusted")] == [("max_steps", 9), ("max_hours", 9)]
    assert (events[-1].reason, events[-1].step) == ("time_is_up", 5)


def test_cancel_leaves_no_model(make_order: MakeOrder) -> None:
    order = make_order("lora")
    events = run(order, {2: Control(verb="cancel")})
    assert events[-1].reason == "cancelled"
    assert not (Path(order.out_dir) / "model").exists()


def test_pause_and_resume_give_the_same_losses_as_one_go(make_order: MakeOrder) -> None:
    whole = of(run(make_order("lora", out="whole")), "step")
    order = make_order("lora", out="paused")
    first = run(order, {5: Control(verb="pause")})
    assert first[-1].reason == "paused"
    second = run(order)
    assert of(second, "started")[0].resumed_from == "checkpoints/step-00000005"
    both = of(first, "step") + of(second, "step")
    assert [(s.step, s.loss) for s in both] == [(s.step, s.loss) for s in whole]


def test_an_adjusted_rate_holds_and_survives_a_resume(make_order: MakeOrder) -> None:
    order = make_order("lora", schedule="constant", warmup_steps=0)
    half = Control(verb="adjust", name="learning_rate", value=order.recipe.learning_rate / 2)
    first = run(order, {2: half, 4: Control(verb="pause")})
    assert [step.learning_rate for step in of(first, "step")] == pytest.approx([5e-3, 5e-3, 2.5e-3, 2.5e-3])
    assert of(first, "adjusted")[0].value == pytest.approx(2.5e-3)
    assert {step.learning_rate for step in of(run(order), "step")} == {2.5e-3}


def test_fewer_epochs_while_running_end_the_run_sooner(make_order: MakeOrder) -> None:
    events = run(make_order("lora", epochs=5), {4: Control(verb="adjust", name="epochs", value=1)})
    assert of(events, "step")[-1].step == of(events, "adjusted")[0].total_steps == 6
    assert events[-1].reason == "completed"


def test_early_stopping_keeps_the_best_checkpoint(make_order: MakeOrder) -> None:
    order = make_order(
        "full", epochs=100, learning_rate=3e-2, schedule="constant", evaluate_every_steps=2, patience_evaluations=3
    )
    events = run(order)
    evaluations = of(events, "evaluated")
    best = min(evaluations, key=lambda one: one.loss)
    assert events[-1].reason == "early_stopped"
    assert events[-1].best_step == best.step
    assert len(evaluations) == evaluations.index(best) + 4
    kept = load_file(Path(order.out_dir) / f"checkpoints/step-{best.step:08d}/weights/model.safetensors")
    final = load_file(Path(order.out_dir) / "model/model.safetensors")
    assert all(torch.equal(kept[name], final[name]) for name in kept)


def test_a_learning_rate_that_explodes_ends_as_diverged_with_a_checkpoint_kept(make_order: MakeOrder) -> None:
    order = make_order("full", learning_rate=9.0, clip_norm=1000, warmup_steps=0, evaluate_every_steps=1000)
    order = order.model_copy(update={"recipe": order.recipe.model_copy(update={"checkpoint_every_steps": 1})})
    events: list[EngineEvent] = []
    with pytest.raises(Diverged, match="Try a learning rate"):
        events.extend(_train(order, after=("checkpoint", 3)))
    assert events[-1].type == "ended"
    assert events[-1].reason == "diverged"
    assert len(of(events, "warned")) == 2
    newest = sorted((Path(order.out_dir) / "checkpoints").glob("step-*"))[-1]
    tensors = load_file(newest / "weights/model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_a_last_step_without_a_number_is_left_out_and_the_model_is_that_of_the_steps_before_it(
    make_order: MakeOrder,
) -> None:
    order = make_order("full", epochs=1, evaluate_every_steps=1000)
    events = list(_train(order, after=("step", 5), heals=True))
    assert [event.step for event in of(events, "warned")] == [6]
    assert (events[-1].reason, events[-1].best_step) == ("completed", 6)
    assert (Path(order.out_dir) / "model/model.safetensors").is_file()


def test_a_run_without_any_loss_that_is_a_number_says_so(make_order: MakeOrder) -> None:
    order = make_order("full", max_steps=1, validation_rows=0)
    with pytest.raises(Diverged, match="much lower learning rate"):
        list(_train(order, after=("started", 0)))


def _train(order: TrainOrder, after: tuple[str, int], heals: bool = False) -> Iterator[EngineEvent]:
    """A run whose weights become NaN after an event, as of a broken accelerator; with `heals` for one step."""
    from worker.engine import train

    found: dict[str, Any] = {}
    original = train.prepare

    def remember(*args: Any) -> Generator[EngineEvent, None, Any]:
        found["material"] = yield from original(*args)
        return found["material"]

    train.prepare = remember
    try:
        for event in train.train(order, Script()):
            yield event
            if heals and event.type == "warned":
                found["weight"].copy_(found["sound"])
            elif (event.type, getattr(event, "step", None)) == after:
                found["weight"] = next(found["material"].model.parameters()).detach()
                found["sound"] = found["weight"].clone()
                found["weight"].fill_(float("nan"))
    finally:
        train.prepare = original


def test_an_adapter_that_changes_nothing_is_refused(make_order: MakeOrder) -> None:
    order = make_order("lora", learning_rate=1e-30, max_steps=1, warmup_steps=0)
    with pytest.raises(BadData, match="change nothing"):
        run(order)


def test_text_rows_train_a_character_model(make_order: MakeOrder, tmp_path: Path) -> None:
    text = "To be, or not to be, that is the question. " * 40
    data = write_version(
        tmp_path / "text",
        [{"kind": "text", "text": text}, {"kind": "text", "text": text[:300], "split": "validation"}],
    )
    spec = {"layers": 2, "heads": 2, "width": 32, "context_length": 32, "tokenizer": "characters"}
    order = make_order("scratch", data=data, scratch=spec, epochs=20, max_length_tokens=32, learning_rate=1e-2)
    events = run(order)
    assert of(events, "evaluated")[-1].accuracy > 0.8
    assert of(events, "started")[0].train_rows == 56  # 1 720 characters and an end token, in windows of 32


def test_no_usable_row_is_said_plainly(make_order: MakeOrder, tmp_path: Path) -> None:
    data = write_version(tmp_path / "long", [{"messages": turns("why " * 100, "because")}])
    with pytest.raises(BadData, match="1 are longer than 64 tokens"):
        run(make_order("lora", data=data))


def test_training_goes_on_from_an_earlier_model(make_order: MakeOrder, bases: Callable[[str], Path]) -> None:
    first = make_order("lora", out="first", epochs=6, learning_rate=2e-2)
    loss = of(run(first), "evaluated")[-1].loss
    overlay = Overlay(kind="lora", dir=str(Path(first.out_dir) / "model"))
    second = make_order("last_layers", out="second", max_steps=1, learning_rate=1e-6)
    second.base = ModelFiles(base_dir=str(bases("llama")), overlays=[overlay])
    assert of(run(second), "evaluated")[0].loss == pytest.approx(loss, rel=0.01)


def test_when_memory_runs_out_the_run_goes_on_with_half_the_rows_at_a_time(
    make_order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = of(run(make_order("full", out="whole", micro_batch_size=1, threads=1)), "step")
    monkeypatch.setattr(sharing, "pack", _small_machine(rows=2))
    order = make_order("full", micro_batch_size=8, threads=1)
    events = run(order)
    told = [(event.kind, event.rung) for event in of(events, "warned")]
    assert told == [("out_of_memory", rung) for rung in (1, 2, 3, 4)]
    steps = {event.step: event.loss for event in of(events, "step")}
    assert steps == {event.step: pytest.approx(event.loss, rel=1e-3) for event in whole}
    assert events[-1].reason == "completed"


def test_a_row_that_never_fits_ends_with_a_plain_sentence(
    make_order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "pack", _small_machine(rows=0))
    with pytest.raises(OutOfMemory, match="smaller base model or shorter rows"):
        run(make_order("full", micro_batch_size=4))


def _small_machine(rows: int) -> Callable[..., packing.Pack]:
    """A machine whose memory holds only so many rows at once."""

    def pack(chosen: list[Any], device: torch.device) -> packing.Pack:
        if len(chosen) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return packing.pack(chosen, device)

    return pack


def test_without_validation_rows_the_newest_checkpoint_is_the_model(make_order: MakeOrder, tmp_path: Path) -> None:
    data = write_version(tmp_path / "v", [{"messages": turns(f"Say {n}", f"It is {n}.")} for n in range(8)])
    events = run(make_order("lora", data=data, epochs=3, evaluate_every_steps=2))
    assert not of(events, "evaluated")
    assert events[-1].best_step is None
    assert events[-1].model_dir == "model"
    assert [event.step for event in of(events, "checkpoint")] == [2, 3]


def test_a_sample_prompt_too_long_for_the_model_is_left_out(make_order: MakeOrder) -> None:
    prompts = ["why " * 200, "What colour is the boat?"]
    events = run(make_order("lora", max_steps=1, sample_prompts=prompts))
    assert [event.prompt for event in of(events, "sample")] == prompts[1:]
    assert events[-1].reason == "completed"
