"""Speeds that finished runs reached on this machine, so that later estimates are measured rather than assumed."""

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.recipes.machine import Machine
from app.recipes.models import SpeedRecord

_NEWEST = 7


@dataclass(frozen=True)
class Measured:
    """What runs of about this size took here, newest first; empty lists before the first.

    Errors are those of estimates by formula or earlier runs; `probed_errors` those of estimates by a probe.
    """

    speeds: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    starts_s: list[float] = field(default_factory=list)
    look_speeds: list[float] = field(default_factory=list)
    probed_errors: list[float] = field(default_factory=list)


_SHORTEST_S = 5.0


def record(
    session: Session,
    *,
    estimate: dict[str, Any],
    method: str,
    device: str,
    tokens: int,
    trained_s: float,
    elapsed_s: float,
    start_s: float | None = None,
    memory_bytes: int | None = None,
) -> None:
    """Keep what a finished run reached. `estimate` is the run's own (Estimate as JSON); very short runs say nothing.

    `trained_s` are the steps alone, `elapsed_s` everything from the start to the end, `start_s` what came before the
    first step: loading and cutting into tokens. The rest is looks at unseen rows, sample answers and saving.
    """
    if trained_s < _SHORTEST_S or tokens <= 0 or not estimate.get("flops_per_token") or not estimate.get("tokens"):
        return
    # The estimate was for the planned tokens; a run that stopped early is compared with its own share of them.
    share = min(1.0, tokens / estimate["tokens"])
    look_flops = None
    if start_s is not None and estimate.get("look_work") and (rest_s := elapsed_s - start_s - trained_s) > 0.5:
        look_flops = estimate["look_work"] * share / rest_s
    session.add(
        SpeedRecord(
            device=device.split(":", 1)[0],
            method=method,
            parameters=int(estimate.get("parameters", 0)),
            flops=estimate["flops_per_token"] * tokens / trained_s,
            start_s=start_s,
            look_flops=look_flops,
            estimated_s=estimate["seconds"] * share,
            actual_s=elapsed_s,
            is_probed=bool(estimate.get("is_probed")),
            estimated_bytes=estimate.get("memory_bytes"),
            actual_bytes=memory_bytes or None,
        )
    )


def measured(session: Session, machine: Machine, parameters: int) -> Measured:
    """What runs of about this size on this kind of device took."""
    query = (
        select(SpeedRecord)
        .where(SpeedRecord.device == machine.device)
        .where(SpeedRecord.parameters.between(parameters // 3, parameters * 3))
        .order_by(SpeedRecord.id.desc())
        .limit(_NEWEST)
    )
    rows = session.scalars(query).all()
    return Measured(
        [row.flops for row in rows],
        [_error(row) for row in rows if not row.is_probed],
        [row.start_s for row in rows if row.start_s is not None],
        [row.look_flops for row in rows if row.look_flops is not None],
        [_error(row) for row in rows if row.is_probed],
    )


def _error(row: SpeedRecord) -> float:
    return abs(row.actual_s - row.estimated_s) / max(1.0, row.actual_s)
