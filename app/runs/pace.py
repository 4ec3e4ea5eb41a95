"""How fast a run goes: the time that is left, and the steps that fit into hours."""

from datetime import datetime

from app.core.db import utcnow
from app.runs import verdicts
from app.runs.models import END_STATES, Run

_OVERHEAD = 1.15
# The estimate counts like so many steps that were measured.
_EXPECTED_STEPS = 5
# A run that the clock cuts off has not come down with its learning rate: a little is kept free.
_CAREFUL = 0.95
_MOST_STEPS = 10_000_000


def left_s(run: Run) -> float | None:
    """Seconds until the end of the training, at the latest that of its hours."""
    found, hours = _by_pace(run), run.max_hours
    return min(found, max(0.0, 3600 * hours - run.spent_s)) if hours and found is not None else found


def steps_in(run: Run, hours: float) -> int | None:
    """Steps of the whole run that fit into so many hours, by its pace; None before anything is known of it."""
    per_step = _step_s(run)
    if per_step is None:
        return None
    left = _CAREFUL * (3600 * hours - run.spent_s) / per_step
    return min(_MOST_STEPS, run.step + max(1, int(left)))


def _by_pace(run: Run) -> float | None:
    """Seconds for the steps to come: from the estimate at first, then more and more from the run's own pace."""
    if run.state in END_STATES or run.state in ("paused", "waiting", "cancelling") or verdicts.is_finishing(run):
        return None
    per_step = _step_s(run)
    if not run.step or not run.total_steps or per_step is None:
        return _expected(run)
    return per_step * max(0, run.total_steps - run.step)


def _expected(run: Run) -> float | None:
    return float(run.estimate["seconds"]) if run.estimate.get("seconds") else None


def _step_s(run: Run) -> float | None:
    """Seconds a step, with all that comes between steps."""
    expected, steps = _expected(run), run.estimate.get("steps") or run.total_steps
    done, spent = _paced(run)
    weight = _EXPECTED_STEPS if expected and steps else 0
    if not done + weight:
        return None
    return (spent + weight * (expected or 0.0) / (steps or 1)) / (done + weight)


def _paced(run: Run) -> tuple[int, float]:
    """(steps, seconds they took). The clock since the attempt's first steps knows about looks and samples, too."""
    pace = run.plan.get("pace")
    if run.state == "running" and pace and run.step > pace["step"]:
        return run.step - pace["step"], (utcnow() - datetime.fromisoformat(pace["at"])).total_seconds()
    # The first step of an attempt is slow and says nothing about the others.
    return (run.step, run.trained_s * _OVERHEAD) if run.step > 1 else (0, 0.0)
