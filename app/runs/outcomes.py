"""What the end of a trainer means for its run, in words for a person: what happened, what is kept, what to do."""

from dataclasses import dataclass, field
from typing import Any

from app.contracts import events as codes
from app.core.numbers import plain

MAX_STALLED_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where the run goes next, and why."""

    to: str
    exit_kind: str
    reason: str = ""
    sentence: str = ""
    diary: str = ""
    level: str = "info"
    changes: dict[str, Any] = field(default_factory=dict)
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known when a trainer has ended."""

    exit_code: int | None
    message: str
    want: str
    step: int
    total_steps: int
    stalled_attempts: int
    memory_rung: int
    relief: str  # what the next rung of the ladder changes; empty: there is none
    learning_rate: float
    kept_step: int | None
    is_drained: bool = False
    is_hung: bool = False
    was_memory_short: bool = False
    log_tail: str = ""


def judge(facts: Facts) -> Outcome:
    """The outcome of an attempt that did not finish with a model (see design: faults, and what the user sees)."""
    code = facts.exit_code
    message = facts.message
    if facts.want == "cancel":
        return Outcome("cancelled", "cancelled", diary="Cancelled.")
    if facts.want == "restart":
        return Outcome("queued", "restarted", diary=f"Restarted. {_goes_on(facts)}")
    if facts.is_drained:
        return Outcome("queued", "drained", diary=f"The machine is being restarted. {_goes_on(facts)}")
    if code == codes.EXIT_PAUSED and facts.want == "pause":
        return Outcome("paused", "paused", diary=f"Paused at step {facts.step}. Resume whenever you like.")
    if code == codes.EXIT_PAUSED:
        return Outcome("queued", "drained", diary=_goes_on(facts))
    if code == codes.EXIT_DIVERGED:
        return _failed(
            facts,
            "diverged",
            message
            or f"Training diverged at step {facts.step}: the loss is no longer a number. {_kept(facts)} "
            f"Try a learning rate of {plain(facts.learning_rate / 3, 2)} or less.",
        )
    if code == codes.EXIT_BAD_DATA:
        return _failed(facts, "bad_data", f"{message or 'An example could not be learned from.'} {_kept(facts)}")
    if code == codes.EXIT_DISK_FULL:
        sentence = f"Paused: {message or 'the disk is full.'} {_kept(facts)} It goes on by itself once there is space."
        return Outcome("waiting", "disk_full", "disk_full", sentence, sentence, "warning")
    # With its own code the trainer has taken every rung itself; a kill leaves the next one; so do several processes.
    was_killed_for_it = code in (-9, codes.EXIT_LOST_COMPANION) and facts.was_memory_short
    if code in (codes.EXIT_OUT_OF_MEMORY, codes.EXIT_NEEDS_LESS) or was_killed_for_it:
        return _out_of_memory(facts, is_last=code == codes.EXIT_OUT_OF_MEMORY or not facts.relief)
    if code == codes.EXIT_DEVICE_FAULT:
        return _interrupted(facts, "device_fault", "The device stopped responding.", message)
    if code == codes.EXIT_LOST_COMPANION:
        what = message or "One of the processes that train together ended unexpectedly; the others were stopped."
        return _interrupted(facts, "companion_lost", what, message)
    if facts.is_hung:
        return _interrupted(facts, "hung", "The training stood still and was stopped.", message)
    return _interrupted(facts, _kind(code), "The training process ended unexpectedly.", message)


def _interrupted(facts: Facts, kind: str, what: str, message: str) -> Outcome:
    if facts.want == "pause":
        return Outcome("paused", kind, diary=f"Paused. {what} {_goes_on(facts)}", level="warning")
    stalled = facts.stalled_attempts + 1
    if stalled >= MAX_STALLED_ATTEMPTS:
        tail = f"\n\nThe last lines of its log:\n{facts.log_tail}" if facts.log_tail else ""
        reason = kind if kind in ("device_fault", "hung") else "crash_loop"
        sentence = (
            f"{message or what} It was tried {stalled} times without getting further, and given up. {_kept(facts)} "
            "Look at the log below, then start it again."
        )
        return _failed(facts, reason, sentence + tail)
    return Outcome(
        "queued",
        kind,
        diary=f"{what} {_goes_on(facts)}",
        level="warning",
        changes={"stalled_attempts": stalled},
        wait_s=0.0 if stalled == 1 else 2.0**stalled,
    )


def _out_of_memory(facts: Facts, *, is_last: bool) -> Outcome:
    if is_last:
        return _failed(
            facts,
            "out_of_memory",
            f"The machine ran out of memory after everything that needs less was tried. {_kept(facts)} "
            "Choose a smaller base model or shorter examples.",
        )
    diary = f"The machine ran out of memory. Going on with {facts.relief}; a step takes a little longer."
    return Outcome(
        "queued", "out_of_memory", diary=diary, level="warning", changes={"memory_rung": facts.memory_rung + 1}
    )


def _failed(facts: Facts, reason: str, sentence: str) -> Outcome:
    return Outcome("failed", reason, reason, sentence, sentence.split("\n\n", 1)[0], "error")


def _kept(facts: Facts) -> str:
    return f"Step {facts.kept_step} is kept." if facts.kept_step else "No checkpoint had been saved yet."


def _goes_on(facts: Facts) -> str:
    if facts.kept_step:
        return f"It goes on from step {facts.kept_step} of {facts.total_steps}; nothing is lost."
    return "It starts again from the beginning; no checkpoint had been saved yet."


def _kind(code: int | None) -> str:
    if code is None:
        return "lost"
    return f"signal_{-code}" if code < 0 else f"exit_{code}"
