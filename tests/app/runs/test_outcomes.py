"""What the end of a trainer of several processes means for its run."""

from dataclasses import replace

from app.contracts.events import EXIT_LOST_COMPANION, EXIT_NEEDS_LESS
from app.runs.outcomes import Facts, judge

LOST = Facts(
    exit_code=EXIT_LOST_COMPANION, message="Process 2 of the 2 that train together ended unexpectedly.", want="run",
    step=70, total_steps=100, stalled_attempts=0, memory_rung=0, relief="half the rows", learning_rate=1e-3,
    kept_step=60,
)  # fmt: skip


def test_a_run_goes_on_after_one_of_its_processes_was_lost() -> None:
    found = judge(LOST)
    assert (found.to, found.exit_kind, found.changes) == ("queued", "companion_lost", {"stalled_attempts": 1})
    assert found.diary == f"{LOST.message} It goes on from step 60 of 100; nothing is lost."
    assert judge(replace(LOST, stalled_attempts=2)).to == "failed"


def test_one_that_lacks_memory_lets_all_begin_again_with_less() -> None:
    for facts in (replace(LOST, exit_code=EXIT_NEEDS_LESS), replace(LOST, was_memory_short=True)):
        found = judge(facts)
        assert (found.to, found.changes) == ("queued", {"memory_rung": 1})
        assert "half the rows" in found.diary
    assert judge(replace(LOST, exit_code=EXIT_NEEDS_LESS, relief="")).reason == "out_of_memory"
