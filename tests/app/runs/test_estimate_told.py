"""A finished run says how near its estimate came, where it was a fair one."""

from datetime import timedelta

import pytest

from app.core.db import utcnow
from app.core.numbers import percent
from app.runs import verdicts
from app.runs.curves import Curves
from app.runs.models import Model, Run


def finished(**changes: object) -> Run:
    began = utcnow() - timedelta(hours=1)
    values: dict[str, object] = {
        "state": "succeeded", "reason": "completed", "attempts": 1, "started_at": began, "recipe": {"method": "lora"},
        "ended_at": began + timedelta(seconds=200), "estimate": {"seconds": 190.0, "is_probed": True}, "trained_s": 150,
        "tokens_seen": 100, "plan": {},
    }  # fmt: skip
    return Run(**{**values, **changes})


def evidence(run: Run) -> str:
    return " ".join(verdicts.of(run, Curves(), [], None, []).evidence)


def test_what_was_measured_stands_beside_what_it_took() -> None:
    assert f"measured before it started, {percent(0.05)} off" in evidence(finished())
    assert "estimated before it started" in evidence(finished(estimate={"seconds": 100.0}))


def test_a_run_whose_hours_are_used_up_says_so() -> None:
    run = finished(reason="time_is_up", recipe={"max_hours": 2.0}, step=70, total_steps=90)
    model = Model(stop_test={}, warning="")
    assert (
        "Its 2 h of machine time are used up: it ended after 70 of 90 steps."
        in verdicts.of(run, Curves(), [], model, []).sentence
    )


@pytest.mark.parametrize("changes", [{"reason": "early_stopped"}, {"attempts": 2}, {"estimate": {}}])
def test_a_run_that_was_cut_short_says_nothing_about_it(changes: dict[str, object]) -> None:
    assert "before it started" not in evidence(finished(**changes))
