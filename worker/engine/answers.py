"""Whole answers from a model in memory: samples while training, the stop test after it."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.contracts.conversation import Message
from app.contracts.generation import GenerationRequest, Sampling, TokenEvent
from app.contracts.recipe import ModelFiles
from worker.engine.errors import BadData
from worker.engine.generate import Generation, Loaded, fit_prompt
from worker.engine.packing import is_packable
from worker.engine.slots import Slots

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
    """What a model said in so many tokens. `ended`: by its own end token, not by the limit."""

    text: str
    ended: bool
    tokens: int


def answer(loaded: Loaded, prompt: Prompt, max_tokens: int, seed: int = 1) -> Answer:
    """The model's answer: greedy in a conversation, drawn with a fixed seed for plain text."""
    generation, told = Generation(loaded, _request(prompt, max_tokens, seed)), list[TokenEvent]()
    while not generation.is_done:
        if event := generation.step():
            told.append(event)
    return _answer(told)


def answers(loaded: Loaded, prompts: Sequence[Prompt], max_tokens: int) -> list[Answer]:
    """What `answer` gives of each, made together where the model can: its weights must be joined (`products.py`)."""
    if not is_packable(loaded.model):
        return [answer(loaded, prompt, max_tokens) for prompt in prompts]
    slots, asked = Slots(loaded), [Generation(loaded, _request(prompt, max_tokens, 1)) for prompt in prompts]
    told: dict[Generation, list[TokenEvent]] = {generation: [] for generation in asked}
    for generation in asked:
        slots.add(generation)
    while slots.answers:
        for generation, event in slots.step():
            told[generation].append(event)
    return [_answer(events) for events in told.values()]


def _answer(told: Sequence[TokenEvent]) -> Answer:
    """Of all that was told of an answer; its last event says how it ended."""
    return Answer("".join(event.text for event in told), told[-1].finish_reason == "stop", len(told))


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
