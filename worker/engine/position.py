"""Where a run is: everything the loop remembers from one step to the next, beside weights and optimisers."""

from dataclasses import dataclass, field

from app.contracts.events import EndReason
from worker.engine.errors import Diverged

BAD_IN_A_ROW, BAD_IN_100 = 3, 10


@dataclass
class Position:
    """Where a run is; written whole into every checkpoint, so that nothing else is remembered."""

    micro_batch_size: int
    learning_rate: float
    epochs: float
    evaluate_every_steps: int
    step: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    last_loss: float | None = None
    evaluations_without_gain: int = 0
    ending: EndReason | None = None
    losses: list[float] = field(default_factory=list)
    bad_steps: list[int] = field(default_factory=list)
    max_steps: int | None = None  # the recipe's, until its hours are changed

    def evaluated(self, loss: float) -> bool:
        """Note a validation loss; True when it is the best so far."""
        self.last_loss = loss
        if self.best_loss is not None and loss >= self.best_loss:
            self.evaluations_without_gain += 1
            return False
        self.best_loss, self.best_step, self.evaluations_without_gain = loss, self.step, 0
        return True

    def count_bad_step(self) -> None:
        """Note a step whose loss or gradient was no number (its update is left out). Raises Diverged at the limit."""
        step = self.step
        self.bad_steps = [*(s for s in self.bad_steps if s > step - 100), step]
        in_a_row = list(range(step - BAD_IN_A_ROW + 1, step + 1))
        if len(self.bad_steps) >= BAD_IN_100 or self.bad_steps[-BAD_IN_A_ROW:] == in_a_row:
            raise Diverged(f"Training diverged at step {step}: the loss is no longer a number. {self.advice()}")

    def advice(self) -> str:
        """What to do after a divergence."""
        return f"The last good checkpoint is kept. Try a learning rate of {self.learning_rate / 3:.2g} or less."
