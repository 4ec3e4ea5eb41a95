"""The end of a run: the best checkpoint becomes the model, is loaded again from its files and tried."""

import platform
import shutil
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import orjson
import torch
from safetensors.torch import load_file

from app.contracts import events as e
from app.contracts.recipe import ModelFiles, Overlay, TrainOrder
from worker.engine import devices, loading
from worker.engine.answers import LONGEST_ANSWER, answers
from worker.engine.checkpoints import Checkpoints, read_state, seal, sync_folder
from worker.engine.errors import BadData, Diverged
from worker.engine.methods.whole import write_model
from worker.engine.packing import is_packable
from worker.engine.precision import join_norms
from worker.engine.prepare import Material
from worker.engine.products import join


def finish(
    order: TrainOrder,
    material: Material,
    store: Checkpoints,
    best_step: int | None,
    step: int,
    reason: e.EndReason,
) -> e.Ended:
    """Put `model/` together from the best checkpoint and test it. Raises BadData when it does not work, Diverged where
    nothing could be saved."""
    kept = store.newest_first()
    if not kept:
        raise Diverged("No step of this training gave a loss that is a number. Try a much lower learning rate.")
    devices.let_go()  # what the steps used is kept for the next; here the model is loaded a second time beside itself
    source = store.folder / f"step-{best_step:08d}" if best_step else kept[0]
    run_dir = Path(order.out_dir)
    temporary, final = run_dir / ".tmp-model", run_dir / "model"
    shutil.rmtree(temporary, ignore_errors=True)
    if material.method.kind == "whole":
        _write_whole(order, material, source / "weights", temporary)
    else:
        shutil.copytree(source / "weights", temporary)
    stop_test = try_out(order, material, temporary)
    (temporary / "recipe.json").write_text(order.recipe.model_dump_json(indent=2), encoding="utf-8")
    about = {
        "run_id": order.run_id,
        "reason": reason,
        "steps": step,
        "best_step": best_step,
        "trained_state": read_state(source)["position"],
        "spec_sha256": store.spec_sha256,
        "stop_test": stop_test,
        "versions": versions(),
    }
    (temporary / "run.json").write_bytes(orjson.dumps(about, option=orjson.OPT_INDENT_2))
    seal(temporary)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    sync_folder(run_dir)
    return e.Ended(
        reason=reason,
        step=step,
        best_step=best_step,
        model_dir="model",
        model_kind=material.method.kind,
        stop_test=stop_test,
        message=_verdict(stop_test, material),
    )


def _write_whole(order: TrainOrder, material: Material, weights: Path, folder: Path) -> None:
    """Whole weights in the format that the base came in; from scratch, in the one it was trained in."""
    dtype = torch.float32
    if order.base:
        dtype = loading.stored_dtype(Path(order.base.base_dir))
    elif order.recipe.precision != "fp32":
        dtype = torch.bfloat16
    tensors = {name: t.to(dtype) for name, t in load_file(weights / "model.safetensors").items()}
    write_model(material.model, tensors, folder, weights)


@torch.inference_mode()
def try_out(order: TrainOrder, material: Material, folder: Path) -> dict[str, float]:
    """Load the model from its files, check that it differs from its base, and let it answer the test prompts."""
    kind = material.method.kind
    if kind == "whole":
        model = loading.load_model(ModelFiles(base_dir=str(folder)), torch.float32)
    else:
        assert order.base
        model = loading.load_model(order.base, torch.float32)
        probe = torch.from_numpy(material.train_rows.row(0)[0][:64].astype("int64"))[None]
        before = model(input_ids=probe).logits
        model = loading.apply_overlay(model, Overlay(kind=kind, dir=str(folder))).eval()
        if torch.equal(before, model(input_ids=probe).logits):
            raise BadData(
                "The trained weights change nothing: the model answers exactly as its base does. "
                "Raise the learning rate or the number of epochs."
            )
    longest = max((prompt.answer_tokens for prompt in material.tests), default=0)
    limit = min(LONGEST_ANSWER, 2 * longest) or 32
    began = time.monotonic()
    join_norms(model)
    if is_packable(model):
        join(model)
    said = answers(replace(material.loaded, model=model), material.tests, limit)
    return {
        "tried": len(said),
        "ended": sum(one.ended for one in said),
        "empty": sum(not one.text.strip() for one in said),
        "tokens": sum(one.tokens for one in said),
        "seconds": time.monotonic() - began,
    }


def _verdict(stop_test: dict[str, float], material: Material) -> str:
    """What a person should know about the stop test; empty when all is well."""
    if stop_test["empty"]:
        return f"{stop_test['empty']:.0f} of {stop_test['tried']:.0f} test answers were empty."
    if material.train_rows.is_chat.any() and stop_test["ended"] * 2 < stop_test["tried"]:
        return (
            f"Your model does not learn where to stop: {stop_test['ended']:.0f} of {stop_test['tried']:.0f} test "
            "answers ended by themselves. Train longer, or look for answers in your data that break off."
        )
    return ""


def versions() -> dict[str, str]:
    """Of everything that the numbers depend on."""
    packages = ("torch", "transformers", "peft", "tokenizers", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
