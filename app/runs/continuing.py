"""A run that goes on where another one left off: its checkpoint, its curve, and half the learning rate from there."""

import hashlib
import os
import shutil
from pathlib import Path

import orjson
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.contracts.recipe import RecipeSpec
from app.core import storage
from app.core.errors import Conflict
from app.core.numbers import plain
from app.runs import service
from app.runs.models import END_STATES, Checkpoint, MetricPoint, Run, SampleAnswer
from app.runs.states import note


def newest(session: Session, run: Run) -> Checkpoint | None:
    """The newest kept checkpoint that is still on disk."""
    kept = reversed(service.checkpoints(session, run))
    return next((one for one in kept if (storage.run_dir(run.id) / one.dir).is_dir()), None)


def go_on_slower(session: Session, actor: Actor, run_id: str, *, client_request_id: str) -> Run:
    """A new run with this one's recipe, from its newest checkpoint on, at half the learning rate that it had.

    Raises Conflict while it is going on, and where no checkpoint or version is left.
    """
    old = service.get(session, actor, run_id, need="editor")
    if old.state not in END_STATES:
        raise Conflict("This run is still going on.")
    start = newest(session, old)
    if start is None or old.version_id is None:
        raise Conflict("No checkpoint of this run is left to go on from. Start it again with a lower learning rate.")
    run = service.start(
        session,
        actor,
        project_id=old.project_id,
        version_id=old.version_id,
        recipe=RecipeSpec.model_validate(old.recipe),
        client_request_id=client_request_id,
        name=f"{old.name[:80]}, from step {start.step}",
        base_model_id=old.base_model_id,
        parent_model_id=old.parent_model_id,
    )
    if "learning_rate" in run.adjustments:
        return run  # a doubled click: the first one has taken everything over
    if run.frozen["spec_sha256"] != old.frozen["spec_sha256"]:
        raise Conflict("Base model or objective have changed since. Start a new run from the recipe page.")
    rate = old.adjustments.get("learning_rate", old.recipe["learning_rate"]) / 2
    run.adjustments = {**old.adjustments, "learning_rate": rate}
    best = session.scalar(
        select(Checkpoint).where(Checkpoint.run_id == old.id, Checkpoint.is_best, Checkpoint.state == "kept")
    )
    for one in {checkpoint.id: checkpoint for checkpoint in (start, best) if checkpoint is not None}.values():
        if one.step <= start.step and (storage.run_dir(old.id) / one.dir).is_dir():
            _take_over(session, old, run, one)
    _copy_curve(session, old, run, start.step)
    run.step, run.total_steps, run.plan = start.step, old.total_steps, {"memory_rung": old.plan.get("memory_rung", 0)}
    words = f"It goes on from step {start.step} of run {old.number}, with the learning rate {plain(rate, 2)}."
    note(session, run.id, words, kind="continued", step=start.step)
    return run


def _take_over(session: Session, old: Run, run: Run, kept: Checkpoint) -> None:
    """The checkpoint as one of the new run: the same files (linked, not copied) under its name."""
    source, target = storage.run_dir(old.id) / kept.dir, storage.run_dir(run.id) / kept.dir
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target, copy_function=_linked)
    state = orjson.loads((target / "state.json").read_bytes())
    manifest = orjson.loads((target / "MANIFEST.json").read_bytes())
    written = orjson.dumps({**state, "run_id": run.id})
    manifest["files"]["state.json"] = {"size": len(written), "sha256": hashlib.sha256(written).hexdigest()}
    sealed = orjson.dumps(manifest, option=orjson.OPT_INDENT_2)
    for name, content in (("state.json", written), ("MANIFEST.json", sealed)):
        (target / name).unlink()  # a link: the old run keeps its own
        (target / name).write_bytes(content)
    session.add(
        Checkpoint(
            run_id=run.id,
            attempt_id=kept.attempt_id,
            fence=0,
            step=kept.step,
            dir=kept.dir,
            manifest_sha256=hashlib.sha256(sealed).hexdigest(),
            size_bytes=kept.size_bytes,
            validation_loss=kept.validation_loss,
            is_best=kept.is_best,
        )
    )


def _linked(source: str, target: str) -> object:
    try:
        os.link(source, target)
    except OSError:  # another file system
        return shutil.copy2(source, target)
    return Path(target)


def _copy_curve(session: Session, old: Run, run: Run, step: int) -> None:
    points = select(MetricPoint).where(MetricPoint.run_id == old.id, MetricPoint.step <= step)
    session.add_all(
        MetricPoint(run_id=run.id, name=point.name, step=point.step, value=point.value)
        for point in session.scalars(points)
    )
    answers = select(SampleAnswer).where(SampleAnswer.run_id == old.id, SampleAnswer.step <= step)
    session.add_all(
        SampleAnswer(run_id=run.id, step=one.step, prompt_index=one.prompt_index, prompt=one.prompt, text=one.text,
                     has_ended=one.has_ended)
        for one in session.scalars(answers)
    )  # fmt: skip
