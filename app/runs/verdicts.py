"""The coach card for every state of a run: the curve's verdict while it trains, plain words before and after."""

from collections.abc import Sequence

from app.core.db import utcnow
from app.core.numbers import counted, duration, later, number, percent
from app.core.numbers import loss as shown
from app.runs import coach
from app.runs.coach import Verdict
from app.runs.curves import Curves
from app.runs.models import Checkpoint, Model, Run, RunEvent

_FAILED = {
    "diverged": "Stopped to protect your work",
    "out_of_memory": "It ran out of memory",
    "bad_data": "A row could not be learned from",
    "crash_loop": "It stopped three times at the same place",
    "hung": "It stood still",
    "device_fault": "The device stopped responding",
    "disk_full": "The disk is full",
}
_ENDED = {
    "completed": "All steps are done.",
    "early_stopped": "It stopped by itself, because validation loss no longer fell.",
    "stopped": "Stopped and saved.",
}
_PHASES = {
    "loading": "Loading the base model.",
    "tokenising": "Cutting your rows into tokens.",
    "tokenizer": "Learning the tokenizer from your text.",
    "reference": "Noting what the base thinks of both answers of each row, once.",
}


_FINISHING = Verdict("finalizing", "idle", "Finishing", "The best checkpoint is checked, tried out and stored.")


def of(
    run: Run,
    curves: Curves,
    checkpoints: Sequence[Checkpoint],
    model: Model | None,
    log: Sequence[RunEvent],
    *,
    place: int | None = None,
    starts_in_s: float | None = None,
) -> Verdict:
    """The verdict to show for a run in whatever state."""
    kept = max((checkpoint.step for checkpoint in checkpoints), default=None)
    if run.state == "queued":
        return _queued(run, place or 1, starts_in_s, kept)
    if run.state == "succeeded":
        return _succeeded(run, curves, model, log)
    if run.state == "failed":
        return _failed(run, kept)
    if run.state == "waiting":
        return Verdict("waiting", "warn", "Waiting for room", run.sentence or "It goes on by itself.", _kept(kept))
    if run.state == "paused":
        sentence = (
            f"It stands at step {number(run.step)} of {number(run.total_steps)} and goes on from there."
            if run.step
            else "It has not begun yet. Resume puts it back into the queue."
        )
        return Verdict(
            "paused", "idle", "Paused", sentence, _kept(kept), ("resume", "stop_and_keep") if kept else ("resume",)
        )
    if run.state == "cancelled":
        return Verdict(
            "cancelled", "idle", "Cancelled", "It left no model. Its curve and log stay.", _kept(kept), ("again",)
        )
    if run.state == "cancelling":
        return Verdict("cancelling", "idle", "Cancelling", "It ends after the step it is in.")
    if run.state == "pausing":
        return Verdict("pausing", "idle", "Pausing", "It finishes its step and saves a checkpoint.")
    if run.state == "finalizing":
        return _FINISHING
    if run.state == "starting" or (run.state == "running" and run.step == 0):
        sentence = _PHASES.get(run.phase, "The trainer is getting ready; the first step follows soon.")
        return Verdict("starting", "idle", "Getting ready", sentence)
    return _training(run, curves, log, kept)


def _training(run: Run, curves: Curves, log: Sequence[RunEvent], kept: int | None) -> Verdict:
    shrunk = [event for event in log if event.kind == "out_of_memory"]
    if shrunk and len(curves.val) < coach.MIN_EVALUATIONS:
        return coach.less_memory(shrunk[-1].step, shrunk[-1].sentence)
    if log and run.step:
        # The diary and the steps are written together; a silent row for long means no steps.
        silent = (utcnow() - log[-1].at).total_seconds() - _evaluation_gap(run)
        slow = coach.stalled(silent, run.trained_s / run.step, kept)
        if slow is not None:
            return slow
    if is_finishing(run):
        return _FINISHING
    starved = coach.starved(run.plan.get("computer") or {})
    found = judged(run, curves)
    return starved if starved is not None and found.kind in ("idle", "good") else found


def is_finishing(run: Run) -> bool:
    """Whether no step follows: the last look, the last save, then the best checkpoint is tried and stored."""
    if run.state == "finalizing":
        return True
    return run.state == "running" and (run.phase == "finishing" or 0 < run.total_steps <= run.step)


def _evaluation_gap(run: Run) -> float:
    """Seconds between two lines of the diary in a healthy run: a checkpoint follows each evaluation."""
    every = float(run.recipe.get("evaluate_every_steps", 50))
    return 2 * every * run.trained_s / max(1, run.step)


def _queued(run: Run, place: int, starts_in_s: float | None, kept: int | None) -> Verdict:
    if place == 1 and not starts_in_s:
        sentence = "It is next. It starts as soon as the trainer is free, usually within seconds."
    elif starts_in_s is None:
        sentence = f"Place {place} in the queue. One run trains at a time; it starts by itself."
    else:
        sentence = f"Place {place} in the queue. It is expected to start at about {later(starts_in_s)}, by itself."
    return Verdict("queued", "idle", "Waiting for its turn", sentence, _kept(kept) if run.step else [])


def _kept(step: int | None) -> list[str]:
    return [f"The newest checkpoint is of step {number(step)}."] if step else []


def _succeeded(run: Run, curves: Curves, model: Model | None, log: Sequence[RunEvent]) -> Verdict:
    best = (
        f" Your model is step {number(run.best_step)}, with validation loss {shown(run.best_loss)}."
        if run.best_loss
        else ""
    )
    ended = _ENDED.get(run.reason, "It is done.")
    if run.reason == "time_is_up":
        ended = f"Its {_hours(run)} of machine time are used up: it ended after {_steps_of(run)}."
    sentence = ended + best
    evidence = [f"It trained for {duration(run.trained_s)} and read {counted(run.tokens_seen, 'token')}."]
    if curves.val:
        first, last = curves.val[0], curves.best or curves.val[-1]
        evidence.append(f"Validation loss fell from {shown(first[1])} at step {number(first[0])} to {shown(last[1])}.")
    evidence += _against_estimate(run)
    if model is None:
        why = next((event.sentence for event in reversed(log) if event.kind == "discarded"), "Its model was deleted.")
        return Verdict(
            "deleted", "idle", "Finished, weights not kept", f"{why} Curve and log stay.", evidence, ("again",)
        )
    tried = int(model.stop_test.get("tried", 0)) if model.stop_test else 0
    if tried:
        evidence.append(f"Of {tried} test answers {int(model.stop_test.get('ended', 0))} ended by themselves.")
    if model.warning:
        return Verdict("done_warning", "warn", "Ready, with a warning", model.warning, evidence, ("chat", "evaluate"))
    return Verdict("done", "done", "Your model is ready", sentence, evidence, ("chat", "evaluate"))


def _hours(run: Run) -> str:
    return duration(3600 * (run.max_hours or 0))


def _steps_of(run: Run) -> str:
    return f"{number(run.step)} of {counted(run.total_steps, 'step')}"


def _against_estimate(run: Run) -> list[str]:
    """What was expected before the start beside what it took; only for a run that nothing cut short or interrupted."""
    expected = run.estimate.get("seconds")
    if not expected or run.reason != "completed" or run.attempts != 1 or not run.started_at or not run.ended_at:
        return []
    took = (run.ended_at - run.started_at).total_seconds()
    how = "measured before it started" if run.estimate.get("is_probed") else "estimated before it started"
    return [f"It took {duration(took)}; {duration(expected)} were {how}, {percent(abs(expected / took - 1))} off."]


def _failed(run: Run, kept: int | None) -> Verdict:
    title = _FAILED.get(run.reason, "It stopped")
    if run.step:
        title = f"{title} at step {number(run.step)}" if run.reason in ("diverged", "out_of_memory") else title
    sentence = (run.sentence or "It ended on an unexpected error.").split("\n\n", 1)[0]
    what = "Every kept checkpoint below can be chatted with." if kept else "No checkpoint had been saved yet."
    actions: dict[str, tuple[str, ...]] = {
        "diverged": ("continue_slower", "again_slower") if kept else ("again_slower",),
        "out_of_memory": ("again_smaller",),
    }
    return Verdict("failed", "bad", title, sentence, [what, *_kept(kept)], actions.get(run.reason, ("again",)))


def short(run: Run, curves: Curves) -> tuple[str, str]:
    """Verdict and kind for a row of the list, without training points."""
    if run.state in ("running", "finalizing"):
        best = curves.best
        behind = [p for p in curves.val if best and p[0] > best[0]]
        if best and run.last_loss and run.last_loss > 1.2 * curves.val[0][1] and curves.val[-1][1] > 1.5 * best[1]:
            return "Getting worse", "bad"
        if best and len(behind) >= 5 and behind[-1][1] >= best[1] * 1.015:
            return f"Memorising since step {number(best[0])}", "warn"
        if len(curves.val) >= coach.MIN_EVALUATIONS:
            return "Learning well", "good"
        return "Warming up", "idle"
    if run.state == "failed":
        return _FAILED.get(run.reason, "It stopped"), "bad"
    if run.state == "succeeded":
        return ("Stopped and kept" if run.reason == "stopped" else "Ready"), "good"
    return "", "idle"


_known: dict[str, tuple[tuple[object, ...], Verdict]] = {}


def judged(run: Run, curves: Curves) -> Verdict:
    """The curve's verdict, kept until the next evaluation: nothing else changes it once there is enough to judge."""
    key = (len(curves.val), curves.val[-1] if curves.val else None, run.total_steps)
    known = _known.get(run.id)
    # Between two looks only one thing changes the verdict: a loss that runs away.
    is_settled = known is not None and known[1].finding not in ("warming_up", "diverging")
    if known is not None and known[0] == key and is_settled and coach.runs_away(curves) is None:
        return known[1]
    verdict = coach.judge(curves, run.total_steps)
    if len(_known) > 500:
        _known.clear()
    _known[run.id] = (key, verdict)
    return verdict


def zone(run: Run, curves: Curves) -> int | None:
    """First step of the memorising zone of the curve, while it trains and afterwards; None where there is none."""
    return judged(run, curves).zone_from


def smaller_part(batch_size: int, micro_batch_size: int) -> int:
    """The next smaller number of rows at once that divides the rows a step."""
    return max((n for n in range(1, max(2, micro_batch_size)) if batch_size % n == 0), default=1)
