"""The time left follows the run's own pace: without the loading before it, and never far from the estimate at first."""

from datetime import timedelta

import pytest

from app.core.db import utcnow
from app.runs import verdicts
from app.runs.curves import Curves
from app.runs.models import Run
from app.runs.pace import left_s, steps_in
from app.runs.view import badge_of


def a_run(step: int, *, paced_steps: int = 0, paced_s: float = 0.0, **values: object) -> Run:
    """A run of 100 steps that was estimated at 50 s; `paced_steps` took `paced_s` by the clock, up to now."""
    begun = utcnow() - timedelta(seconds=paced_s)
    pace = {"step": step - paced_steps, "at": begun.isoformat()} if paced_steps else None
    # It was claimed long before: the base model took two minutes to load.
    known = {"state": "running", "attempts": 1, "started_at": begun - timedelta(minutes=2), "trained_s": 0.0}
    known |= {"estimate": {"seconds": 50, "steps": 100}, "plan": {"pace": pace}}
    return Run(step=step, total_steps=100, **known | values)


def test_before_the_first_step_it_is_the_estimate():
    assert left_s(a_run(0)) == 50
    assert left_s(a_run(0, state="queued")) == 50


def test_one_slow_first_step_does_not_frighten():
    assert left_s(a_run(1, trained_s=20.0)) == pytest.approx(0.5 * 99, rel=0.01)


def test_after_a_tenth_it_is_the_pace_of_the_run_without_the_loading():
    # 20 steps in 40 s: 2 s a step where 0.5 s was expected, and 75 steps to go.
    assert left_s(a_run(25, paced_steps=20, paced_s=40)) == pytest.approx(2 * 75, rel=0.2)
    assert left_s(a_run(95, paced_steps=90, paced_s=180)) == pytest.approx(2 * 5, rel=0.05)


def test_other_hours_hold_the_steps_that_fit_by_its_pace():
    run = a_run(50, paced_steps=45, paced_s=90, spent_s=300.0)
    # 2 s a step: 200 s more hold 100 steps, less what is kept free.
    assert steps_in(run, 500 / 3600) == pytest.approx(50 + 100, rel=0.08)
    assert steps_in(a_run(0, state="queued", spent_s=0.0), 25 / 3600) == pytest.approx(50, rel=0.08)
    assert steps_in(a_run(0, estimate={}, spent_s=0.0), 1) is None


def test_the_hours_as_changed_are_the_end():
    run = a_run(
        50, paced_steps=45, paced_s=90, spent_s=3590.0, recipe={"max_hours": 9.0}, adjustments={"max_hours": 1.0}
    )
    assert left_s(run) == pytest.approx(10)


def test_a_paused_or_ended_run_has_none():
    assert left_s(a_run(50, state="paused")) is None
    assert left_s(a_run(50, state="cancelling")) is None
    assert left_s(a_run(100, state="succeeded")) is None


@pytest.mark.parametrize(
    ("step", "values", "word"),
    [
        (99, {}, "Training"),
        (100, {}, "Finishing"),
        (40, {"phase": "finishing"}, "Finishing"),  # stopped early, and kept
        (100, {"state": "finalizing"}, "Finishing"),
        (100, {"state": "cancelling"}, "Cancelling"),
    ],
)
def test_after_the_last_step_it_finishes_and_gives_no_time(step, values, word):
    run = a_run(step, **values)
    assert badge_of(run)[0] == word
    if word == "Finishing":
        assert left_s(run) is None
        assert verdicts.of(run, Curves([], []), [], None, []).title == "Finishing"
