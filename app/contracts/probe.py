"""What a short trial of a recipe on this machine measured, and what a whole run takes by it."""

from typing import Literal

from pydantic import Field

from app.contracts.base import Contract
from app.contracts.recipe import RecipeSpec

SAMPLE_SHARE = 0.05  # of a run's time: more is not spent on sample answers


class Costs(Contract):
    """Seconds, all of one clock. A step takes `step_s` + `token_s` x its tokens; where frozen layers are kept, steps
    after the first pass take the `later_` ones."""

    start_s: float = Field(0.0, description="from the start of the process to the first step: loading, tokens")
    first_s: float = Field(0.0, description="what the very first step takes more than another like it")
    step_s: float = 0.0
    token_s: float = 0.0
    later_step_s: float = 0.0
    later_token_s: float = 0.0
    look_token_s: float = Field(0.0, description="a validation token, the first time")
    later_look_token_s: float = 0.0
    answer_token_s: float = Field(0.0, description="a token of a sample answer, its question's share included")
    test_token_s: float = Field(0.0, description="a token of a test answer at the end, all of which are made together")
    save_s: float = Field(0.0, description="a checkpoint")
    finish_s: float = Field(0.0, description="the model put together and loaded again, without its test answers")


class Probed(Contract):
    """The last event of a trial. Counts are of the whole run's rows, measured on its own token rows."""

    type: Literal["probed"] = "probed"
    device: str
    precision: str
    peak_memory_bytes: int
    parameters: int
    trainable_parameters: int
    train_rows: int
    tokens_per_epoch: int
    look_tokens_each: float = Field(description="mean tokens of a validation row")
    validation_rows: int
    sample_prompts: int
    answer_tokens: float = Field(description="mean tokens of a known answer; 0: unknown, answers end at their limit")
    test_tokens: float = Field(description="tokens of the stop test at the end of a run")
    checkpoint_bytes: int
    steps_measured: int
    watts: float | None = Field(None, description="while steps ran; None: not measurable here")
    wall: Costs
    processor: Costs

    def seconds(self, recipe: RecipeSpec, costs: Costs) -> float:
        """What a run of `recipe` takes from the start of its process to its end, by one of the clocks.

        Steps by pass and tokens, then each look with its answers, checkpoints, the finishing. Early stopping is not
        foreseen.
        """
        steps = recipe.total_steps(self.train_rows)
        a_pass = recipe.steps_per_epoch(self.train_rows)
        first = min(steps, a_pass)
        per_step = self.tokens_per_epoch / a_pass
        steps_s = first * (costs.step_s + costs.token_s * per_step)
        steps_s += (steps - first) * (costs.later_step_s + costs.later_token_s * per_step)
        looks = -(-steps // recipe.evaluate_every_steps) if self.validation_rows and recipe.validation_rows else 0
        look_tokens = min(self.validation_rows, recipe.validation_rows) * self.look_tokens_each
        looks_s = look_tokens * (costs.look_token_s + max(0, looks - 1) * costs.later_look_token_s) if looks else 0.0
        reference_s = 0.0
        if recipe.learn_from == "preferences":
            reference_s = (self.tokens_per_epoch + look_tokens) * costs.look_token_s
        answers_s = self._answers_s(recipe, costs, looks, steps_s + looks_s)
        saves = looks + (steps // recipe.checkpoint_every_steps if recipe.checkpoint_every_steps else 0)
        saves += int(steps_s / max(1, looks) // recipe.checkpoint_every_s) * max(1, looks)
        tests_s = self.test_tokens * costs.test_token_s
        around_s = costs.start_s + costs.first_s + reference_s + max(1, saves) * costs.save_s + costs.finish_s
        return around_s + steps_s + looks_s + answers_s + tests_s

    def _answers_s(self, recipe: RecipeSpec, costs: Costs, looks: int, others_s: float) -> float:
        """Sample answers of all looks: those of the first and the last, between them no more than their share."""
        length = min(self.answer_tokens or recipe.sample_max_tokens, recipe.sample_max_tokens)
        each_s = (len(recipe.sample_prompts) or self.sample_prompts) * length * costs.answer_token_s
        between_s = min(max(0, looks - 2) * each_s, max(0.0, SAMPLE_SHARE * (others_s + 2 * each_s) - each_s))
        return min(looks, 2) * each_s + between_s


class RateTried(Contract):
    """Validation loss (nats a token) after the same few steps at one learning rate; None: it was no number."""

    learning_rate: float
    loss: float | None


class RatesTried(Contract):
    """The last event of a range test: the rates in their order, and the one to take."""

    type: Literal["rates_tried"] = "rates_tried"
    start_loss: float | None
    steps: int
    tried: list[RateTried]
    proposed: float
