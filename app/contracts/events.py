"""What the engine says (one JSON object a line) and what it may be told between steps."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from app.contracts.base import Contract, Said
from app.contracts.probe import Probed, RatesTried

Adjustable = Literal["learning_rate", "epochs", "evaluate_every_steps", "max_hours", "max_steps"]
"""What may change while a run trains. Steps follow from hours: a person changes those."""


class Started(Contract):
    """The plan, after loading and tokenising; `step` is where a resumed run goes on."""

    type: Literal["started"] = "started"
    step: int
    total_steps: int
    train_rows: int
    validation_rows: int
    tokens_per_epoch: int
    supervised_tokens_per_epoch: int
    cut_rows: int = 0
    skipped_rows: int = 0
    parameters: int
    trainable_parameters: int
    device: str
    precision: str
    resumed_from: str | None = None


class Step(Contract):
    """One optimiser step. Loss is the mean over supervised tokens of the effective batch, in nats.

    Of preferences: the mean over pairs, the mean reward margin, and the share of pairs told rightly apart (0 to 1).
    """

    type: Literal["step"] = "step"
    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    supervised_tokens: int
    step_s: float
    memory_bytes: int
    margin: float | None = None
    accuracy: float | None = None


class Evaluated(Contract):
    """Validation loss (nats a supervised token) and next-token accuracy (0 to 1) after `step`.

    Of preferences: loss a pair, share of pairs told rightly apart, and the mean reward margin.
    """

    type: Literal["evaluated"] = "evaluated"
    step: int
    loss: float
    accuracy: float
    rows: int
    is_best: bool
    margin: float | None = None


class Sample(Contract):
    """An answer to one of the sample prompts after `step`: greedy, or drawn with the run's seed for plain text."""

    type: Literal["sample"] = "sample"
    step: int
    prompt_index: int
    prompt: str
    text: Said
    ended: bool


class CheckpointSaved(Contract):
    """A whole, verified checkpoint is on disk. `dir` is relative to the run's folder."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    dir: str
    manifest_sha256: str
    size_bytes: int
    validation_loss: float | None = None
    removed: list[str] = Field(default_factory=list, description="older checkpoints deleted to make room")


class CheckpointDamaged(Contract):
    """A checkpoint failed its manifest and was put aside."""

    type: Literal["checkpoint_damaged"] = "checkpoint_damaged"
    dir: str
    reason: str


class Adjusted(Contract):
    """A parameter was changed while running. `total_steps`: what the run now has; 0 where nobody said."""

    type: Literal["adjusted"] = "adjusted"
    step: int
    name: Adjustable
    value: float
    total_steps: int = 0


class Warned(Contract):
    """Something a person should know that does not stop the run. `rung`: the one taken because memory ran out."""

    type: Literal["warned"] = "warned"
    step: int
    kind: str
    message: str
    rung: int | None = None


class Progress(Contract):
    """A long phase before or after the steps: loading, tokenising, finishing."""

    type: Literal["progress"] = "progress"
    phase: str
    done: int = 0
    total: int = 0


EndReason = Literal[
    "completed", "early_stopped", "time_is_up", "stopped_and_kept", "paused", "cancelled", "diverged", "failed"
]


class Ended(Contract):
    """The last event. For kept models `model_dir` is relative to the run's folder."""

    type: Literal["ended"] = "ended"
    reason: EndReason
    step: int
    best_step: int | None = None
    model_dir: str | None = None
    model_kind: Literal["lora", "layers", "whole"] | None = None
    stop_test: dict[str, float] | None = Field(None, description="tried, ended, empty; tokens and seconds of all")
    message: str = ""
    peak_memory_bytes: int = 0


EngineEvent = Annotated[
    Started
    | Step
    | Evaluated
    | Sample
    | CheckpointSaved
    | CheckpointDamaged
    | Adjusted
    | Warned
    | Progress
    | Ended
    | Probed
    | RatesTried,
    Field(discriminator="type"),
]
engine_event: TypeAdapter[EngineEvent] = TypeAdapter(EngineEvent)


class Control(Contract):
    """One line on the engine's standard input after the order, obeyed between steps."""

    verb: Literal["stop_and_keep", "time_is_up", "pause", "cancel", "adjust", "evaluate_now", "recorded"]
    name: Adjustable | None = None
    value: float | None = Field(None, gt=0)


# Exit codes of the engine process; anything else, or a signal, is a crash.
EXIT_DONE = 0
EXIT_BAD_DATA = 65
EXIT_DEVICE_FAULT = 70
EXIT_LOST_COMPANION = 71
EXIT_PAUSED = 75
EXIT_DIVERGED = 76
EXIT_DISK_FULL = 77
EXIT_OUT_OF_MEMORY = 78
EXIT_CANCELLED = 79
# Of several processes one lacks memory: all begin again, with the next rung of the ladder.
EXIT_NEEDS_LESS = 80
