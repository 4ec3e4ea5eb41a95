"""Whole answers from a model in memory: samples while training, the stop test after it."""

from dataclasses import dataclass

from app.contracts.conversation import Message
from app.contracts.generation import GenerationRequest, Sampling
from app.contracts.recipe import ModelFiles
from worker.engine.errors import BadData
from worker.engine.generate import Generation, Loaded, fit_prompt

LONGEST_ANSWER = 400  # tokens, in tests and samples
TEXT_TEMPERATURE = 0.8  # the likeliest continuation of a plain text soon goes round in circles


@dataclass(frozen=True)
class Prompt:
    """A conversation to answer or a text to go on from, and as people see it.

    `answer_tokens` is the length of the known answer, 0 when there is none.
    """

    shown: str
    messages: list[Message] | None = None
    text: str | None = None
    answer_tokens: int = 0


@dataclass(frozen=True)
class Answer:
    """What a model said. `ended`: by its own end token, not by the limit."""

    text: str
    ended: bool


def answer(loaded: Loaded, prompt: Prompt, max_tokens: int, seed: int = 1) -> Answer:
    """The model's answer: greedy in a conversation, drawn with a fixed seed for plain text."""
    generation, said, reason = Generation(loaded, _request(prompt, max_tokens, seed)), "", None
    while not generation.is_done:
        if event := generation.step():
            said, reason = said + event.text, event.finish_reason
    return Answer(said, reason == "stop")


def fits(loaded: Loaded, prompt: Prompt, max_tokens: int) -> bool:
    """Whether the prompt leaves room for an answer."""
    try:
        fit_prompt(loaded, _request(prompt, max_tokens, 1))
    except BadData:
        return False
    return True


def _request(prompt: Prompt, max_tokens: int, seed: int) -> GenerationRequest:
    temperature = 0.0 if prompt.messages else TEXT_TEMPERATURE
    return GenerationRequest(
        model_ref="run",
        workspace_id="run",
        files=ModelFiles(base_dir="."),
        messages=prompt.messages,
        prompt=prompt.text,
        sampling=Sampling(temperature=temperature, seed=seed, max_tokens=max_tokens),
    )
