"""Speeds that finished runs reached on this machine, so that later estimates are measured rather than assumed."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.recipes.machine import Machine
from app.recipes.models import SpeedRecord

_NEWEST = 7
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
) -> None:
    """Keep what a finished run reached. `estimate` is the run's own (Estimate as JSON); very short runs say nothing.

    `trained_s` are the steps alone, `elapsed_s` everything from the start to the end.
    """
    if trained_s < _SHORTEST_S or tokens <= 0 or not estimate.get("flops_per_token") or not estimate.get("tokens"):
        return
    # The estimate was for the planned tokens; a run that stopped early is compared with its own share of them.
    share = min(1.0, tokens / estimate["tokens"])
    session.add(
        SpeedRecord(
            device=device.split(":", 1)[0],
            method=method,
            parameters=int(estimate.get("parameters", 0)),
            flops=estimate["flops_per_token"] * tokens / trained_s,
            estimated_s=estimate["seconds"] * share,
            actual_s=elapsed_s,
        )
    )


def measured(session: Session, machine: Machine, parameters: int) -> tuple[list[float], list[float]]:
    """(speeds, relative errors of the estimates), newest first, of runs of about this size on this kind of device."""
    query = (
        select(SpeedRecord)
        .where(SpeedRecord.device == machine.device)
        .where(SpeedRecord.parameters.between(parameters // 3, parameters * 3))
        .order_by(SpeedRecord.id.desc())
        .limit(_NEWEST)
    )
    rows = session.scalars(query).all()
    errors = [abs(row.actual_s - row.estimated_s) / max(1.0, row.actual_s) for row in rows]
    return [row.flops for row in rows], errors
