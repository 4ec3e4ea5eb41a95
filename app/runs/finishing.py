"""The last stretch of a run: artefacts verified, published and registered before it is called succeeded."""

from datetime import datetime
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.contracts.events import Ended
from app.contracts.recipe import ModelFiles, Overlay, RecipeSpec
from app.core import storage
from app.core.db import utcnow
from app.recipes import calibration
from app.runs import artefacts
from app.runs.claim import RunLease
from app.runs.models import Model, Run
from app.runs.states import move

_ENDINGS = {
    "completed": "Training finished",
    "early_stopped": "Stopped early, because the validation loss no longer fell",
    "time_is_up": "Stopped, because its hours are used up",
    "stopped_and_kept": "Stopped on request",
}
_NO_STOP = (
    "It does not learn where to stop: {ended} of {tried} test answers ended by themselves. Longer training, or "
    "examples whose answers are complete, usually help."
)
_EMPTY = "{empty} of {tried} test answers were empty. Look at a few examples: are the answers in the right column?"


def finish(lease: RunLease, ended: Ended) -> str:
    """Turn an ended training into a model. Returns the model's id.

    Raises LostLease when the run is no longer ours, or was cancelled meanwhile; artefacts.Damaged when the files are
    not whole; OSError when they cannot be published.
    """
    claimed = lease.claimed
    with lease.write(phase="finishing") as session:
        run = session.get_one(Run, claimed.run_id)
        if run.state != "finalizing":  # a database that went away may have us come here twice
            move(session, claimed.run_id, "finalizing", claimed=claimed)
            session.refresh(run)
    if ended.model_dir is None or ended.model_kind is None:
        raise artefacts.Damaged("The training ended without leaving a model behind.")
    root = storage.run_dir(run.id)
    folder = (root / ended.model_dir).resolve()
    if not folder.is_relative_to(root.resolve()):
        raise artefacts.Damaged("The training named a folder outside its own.")
    artefacts.verify(folder)
    artefacts.write_json(folder / "origin.json", _origin(run))
    url = storage.publish_artefact(folder, f"models/{run.id}")
    best_step = ended.best_step if ended.best_step is not None else ended.step
    warning = stop_warning(ended.stop_test)
    reason = "stopped" if ended.reason == "stopped_and_kept" else ended.reason
    with lease.write(step=ended.step, phase="", reason=reason, sentence=warning) as session:
        session.execute(delete(Model).where(Model.run_id == run.id))
        model = Model(
            project_id=run.project_id,
            run_id=run.id,
            name=run.name,
            kind=ended.model_kind,
            files=files_of(run, str(folder), ended.model_kind).model_dump(),
            base_model_id=run.base_model_id,
            step=best_step,
            size_bytes=artefacts.size_bytes(folder),
            digest=artefacts.digest(folder),
            storage_url=url,
            stop_test=ended.stop_test or {},
            warning=warning,
        )
        session.add(model)
        move(
            session,
            run.id,
            "succeeded",
            claimed=claimed,
            reason=reason,
            exit_kind="done",
            diary=f"{_ENDINGS[ended.reason]}. The model of step {best_step} is yours."
            + (f" {warning}" * bool(warning)),
            kind="succeeded",
            level="warning" if warning else "info",
        )
        session.flush()
        _calibrate(session, run, ended.peak_memory_bytes)
        return model.id


def _calibrate(session: Session, run: Run, peak_memory_bytes: int) -> None:
    """Let later estimates know how quick this run was. Only an uninterrupted run on one device says something."""
    if run.started_at is None or run.attempts != 1 or RecipeSpec.model_validate(run.recipe).replicas > 1:
        return
    calibration.record(
        session,
        estimate=run.estimate,
        method=str(run.recipe["method"]),
        device=str(run.plan.get("device", "cpu")),
        tokens=run.tokens_seen,
        trained_s=run.trained_s,
        elapsed_s=(utcnow() - run.started_at).total_seconds(),
        start_s=_start_s(run),
        memory_bytes=peak_memory_bytes,
    )


def _start_s(run: Run) -> float | None:
    """Seconds from the claim to the first step: the clock at the first recorded steps, less what those took."""
    pace = run.plan.get("pace")
    if not pace or not run.step or run.started_at is None:
        return None
    until = (datetime.fromisoformat(pace["at"]) - run.started_at).total_seconds()
    return max(0.0, until - pace["step"] * run.trained_s / run.step)


def files_of(run: Run, folder: str, kind: str) -> ModelFiles:
    """Where the weights in `folder` (a model or a checkpoint's weights of this run) and all below them lie."""
    if kind == "whole":
        return ModelFiles(base_dir=folder)
    base = ModelFiles.model_validate(run.frozen["base"])
    overlay = Overlay(kind="lora" if kind == "lora" else "layers", dir=folder)
    return ModelFiles(base_dir=base.base_dir, overlays=[*base.overlays, overlay])


def stop_warning(stop_test: dict[str, float] | None) -> str:
    """The sentence for a model whose test answers did not end or said nothing; empty when all is well."""
    if not stop_test or not stop_test.get("tried"):
        return ""
    tried, ended, empty = (int(stop_test.get(name, 0)) for name in ("tried", "ended", "empty"))
    if empty:
        return _EMPTY.format(empty=empty, tried=tried)
    return _NO_STOP.format(ended=ended, tried=tried) if ended * 2 < tried else ""


def _origin(run: Run) -> dict[str, Any]:
    """What made the model, beside the engine's own recipe.json and run.json; no paths of this machine."""
    return {"run": run.id, "name": run.name, **{key: value for key, value in run.frozen.items() if key != "base"}}
