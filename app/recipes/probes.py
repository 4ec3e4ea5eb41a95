"""Probes of a recipe on this machine before it starts: asked for here, made by the `train` queue, kept and used again.

A probe measures what a run takes (`cost`). Equal model, method, rows and settings find the probe that was made.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import orjson
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.contracts.probe import Probed, RatesTried
from app.contracts.recipe import ModelFiles, RecipeSpec, TrainOrder
from app.core import storage
from app.core.config import get_settings
from app.core.db import new_id
from app.core.errors import NotFound
from app.core.queue import ring
from app.core.work import LIVE
from app.recipes.compose import Composed
from app.recipes.estimate import Estimate
from app.recipes.machine import this_machine
from app.recipes.models import Probe

Kind = Literal["cost", "rates"]
TASK = "probes.make"
# Around the trainer: the claim before it, and the model's copy and registration after it.
AROUND_S = 2.0
SPREAD = 0.12
# What a run does not take longer or more memory for: all that `Probed.seconds` reads from the recipe itself.
FREE = {
    "base_ref", "epochs", "max_steps", "max_hours", "learning_rate", "adamw_learning_rate", "schedule", "warmup_steps",
    "final_learning_rate_ratio", "decay_share", "weight_decay", "clip_norm", "label_smoothing", "evaluate_every_steps",
    "checkpoint_every_s", "checkpoint_every_steps", "validation_rows", "early_stopping", "patience_evaluations",
    "keep_checkpoints", "sample_prompts", "sample_max_tokens", "seed", "preference_strength",
}  # fmt: skip


def key_of(recipe: RecipeSpec, version_id: str, base: ModelFiles | None, instruction: str) -> str:
    """What must be equal for a probe to be used again, as a hash; the machine is part of it."""
    parts = [
        recipe.model_dump(mode="json", exclude=FREE),
        version_id,
        base.model_dump() if base else None,
        instruction,
        this_machine().model_dump(),
    ]
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def found(session: Session, project_id: str, kind: Kind, keys: Sequence[str]) -> dict[str, Probe]:
    """The newest probe of each key."""
    query = select(Probe).where(Probe.project_id == project_id, Probe.kind == kind, Probe.key.in_(keys))
    return {probe.key: probe for probe in session.scalars(query.order_by(Probe.created_at, Probe.id))}


def measured(probe: Probe | None) -> Probed | None:
    """What a finished probe of costs says."""
    return Probed.model_validate(probe.result) if probe is not None and probe.state == "succeeded" else None


def compared(probe: Probe | None) -> RatesTried | None:
    """What a finished range test says."""
    return RatesTried.model_validate(probe.result) if probe is not None and probe.state == "succeeded" else None


def ask(
    session: Session,
    *,
    project_id: str,
    kind: Kind,
    recipe: RecipeSpec,
    version_id: str,
    base: ModelFiles | None,
    instruction: str,
) -> Probe:
    """Queue a probe, or give the one that is under way. The caller has checked who asks."""
    key = key_of(recipe, version_id, base, instruction)
    known = found(session, project_id, kind, [key]).get(key)
    if known is not None and known.state in LIVE:
        return known
    probe_id = new_id()
    order = TrainOrder(
        run_id=probe_id,
        attempt_id="probe",
        fence=0,
        recipe=recipe,
        base=base,
        data_dir=str(storage.version_dir(version_id)),
        out_dir=str(folder_of(probe_id)),
        cache_dir=str(storage.tokens_dir(version_id)),
        system_prompt=instruction,
        storage_reserve_bytes=get_settings().disk_reserve_bytes,
    )
    probe = Probe(id=probe_id, project_id=project_id, kind=kind, key=key, order=order.model_dump(mode="json"))
    session.add(probe)
    session.flush()
    ring(session, TASK, probe.id)
    return probe


def stop(session: Session, project_id: str, probe_id: str) -> None:
    """End a probe that nobody wants any more. Raises NotFound."""
    probe = session.get(Probe, probe_id)
    if probe is None or probe.project_id != project_id:
        raise NotFound
    if probe.state in LIVE:
        probe.want = "cancel"
        if probe.state == "queued":
            probe.state = "cancelled"


def folder_of(probe_id: str) -> Path:
    """Where a probe works; deleted at its end."""
    return get_settings().home_dir / "probes" / probe_id


def refined(composed: Composed, probed: Probed | None, errors: Sequence[float]) -> Composed:
    """The recipe with the estimate by its probe, where there is one. `errors`: shares, of earlier runs with one."""
    if probed is None:
        return composed
    by_formula, recipe = composed.estimate, composed.recipe
    seconds = AROUND_S + probed.seconds(recipe, probed.wall)
    steps, per_pass = recipe.total_steps(probed.train_rows), recipe.steps_per_epoch(probed.train_rows)
    spread = max(0.05, min(0.15, 1.5 * sum(errors) / len(errors))) if errors else SPREAD
    energy_wh = probed.watts * seconds / 3600 if probed.watts else None
    estimate = Estimate(
        **by_formula.model_dump(
            exclude={
                "steps", "steps_per_epoch", "tokens", "seconds", "low_s", "high_s", "memory_bytes", "parameters",
                "trainable_parameters", "is_probed", "energy_wh", "price", "error_share",
            }
        ),
        steps=steps,
        steps_per_epoch=per_pass,
        tokens=round(probed.tokens_per_epoch * steps / per_pass),
        seconds=seconds,
        low_s=seconds * (1 - spread),
        high_s=seconds * (1 + spread),
        memory_bytes=probed.peak_memory_bytes,
        parameters=probed.parameters,
        trainable_parameters=probed.trainable_parameters,
        is_probed=True,
        energy_wh=energy_wh,
        price=price_of(seconds, energy_wh),
        error_share=sum(errors) / len(errors) if errors else None,
    )  # fmt: skip
    return replace(composed, estimate=estimate)


def price_of(seconds: float, energy_wh: float | None) -> float | None:
    """By the operator's price of an hour of the device, else by the energy's; None where neither can be told."""
    settings = get_settings()
    if settings.device_price_hour is not None:
        return seconds / 3600 * settings.device_price_hour
    if settings.energy_price_kwh is not None and energy_wh is not None:
        return energy_wh / 1000 * settings.energy_price_kwh
    return None
