"""Answers made together equal those made alone, whoever joins, leaves or reads; what was read is not read again."""

from collections import defaultdict

import pytest

from app.contracts.conversation import Message
from app.contracts.generation import GenerationRequest, Sampling
from app.contracts.recipe import ModelFiles
from tests.worker.tiny import make_model
from worker.engine import answers as made
from worker.engine import slots as slots_module
from worker.engine.answers import Prompt
from worker.engine.generate import Generation, Loaded, load
from worker.engine.slots import Slots

# Of different lengths; the longest is read in several pieces while the others speak.
QUESTIONS = ["How do I reset my password?", "Where is my card? " * 20, "?", "settings " * 50]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = make_model(tmp_path_factory.mktemp(request.param), architecture=request.param, context_length=512)
    return load(ModelFiles(base_dir=str(folder)))


def asked(loaded: Loaded, question: str, workspace_id: str = "w", **sampling: object) -> Generation:
    request = GenerationRequest(
        model_ref="m",
        workspace_id=workspace_id,
        files=ModelFiles(base_dir="unused"),
        messages=[Message(role="user", content=question)],
        sampling=Sampling(**{"temperature": 0, "max_tokens": 30, **sampling}),
    )
    return Generation(loaded, request)


def alone(generation: Generation) -> str:
    said = ""
    while not generation.is_done:
        if event := generation.step():
            said += event.text
    return said


def together(slots: Slots, *joining: tuple[int, Generation], leaving: Generation | None = None) -> list[str]:
    """What each said; the first number is the step at which it joins. `leaving` is dropped after eight steps."""
    said: dict[Generation, str] = defaultdict(str)
    step = 0
    while slots.answers or step <= max(at for at, _ in joining):
        for at, generation in joining:
            if at == step:
                slots.add(generation)
        for generation, event in slots.step():
            said[generation] += event.text
        if step == 8 and leaving is not None:
            slots.drop(leaving)
        step += 1
    return [said[generation] for _, generation in joining]


def test_in_company_as_alone_joined_late_and_with_one_who_leaves(loaded: Loaded) -> None:
    expected = [alone(asked(loaded, question)) for question in QUESTIONS]
    answers = [asked(loaded, question) for question in QUESTIONS]
    gone = asked(loaded, "Where is it? " * 3, max_tokens=200, temperature=1.5, seed=1)
    joining = [(0, answers[0]), (0, gone), (3, answers[1]), (4, answers[2]), (5, answers[3])]
    said = together(Slots(loaded), *joining, leaving=gone)
    assert [said[0], *said[2:]] == expected
    assert all(expected)


def test_test_answers_are_those_made_one_by_one(loaded: Loaded) -> None:
    prompts = [Prompt("", messages=[Message(role="user", content=question)]) for question in QUESTIONS]
    prompts.append(Prompt("", text="The"))
    single = [made.answer(loaded, prompt, 12) for prompt in prompts]
    assert made.answers(loaded, prompts, 12) == single
    assert {one.tokens for one in single if not one.ended} == {12}
    assert made.answers(loaded, [], 12) == []


def test_a_seed_gives_the_same_words_in_company(loaded: Loaded) -> None:
    drawn = {"temperature": 1.0, "top_p": 0.9, "seed": 7}
    expected = alone(asked(loaded, QUESTIONS[0], **drawn))
    mine, other = asked(loaded, QUESTIONS[0], **drawn), asked(loaded, QUESTIONS[0], temperature=1.0, seed=8)
    assert together(Slots(loaded), (0, other), (2, mine))[1] == expected


def test_what_was_read_is_not_read_again_and_the_answer_is_the_same(loaded: Loaded) -> None:
    slots = Slots(loaded)
    first = asked(loaded, QUESTIONS[3])
    (said,) = together(slots, (0, first))
    again = asked(loaded, QUESTIONS[3])
    slots.add(again)
    assert again.read == len(again.ids) - 1
    slots.drop(again)
    longer = asked(loaded, QUESTIONS[3] + "and my card?")
    slots.add(longer)
    assert len(again.ids) - 20 < longer.read < len(longer.ids)
    slots.drop(longer)
    assert together(slots, (0, asked(loaded, QUESTIONS[3])))[0] == said


def test_another_workspace_never_meets_what_was_read(loaded: Loaded) -> None:
    slots = Slots(loaded)
    together(slots, (0, asked(loaded, QUESTIONS[3], "mine")))
    other = asked(loaded, QUESTIONS[3], "theirs")
    slots.add(other)
    assert other.read == 0


def test_a_beginning_that_is_asked_twice_at_once_is_read_once(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "SHORT_PROMPT", 8)
    slots = Slots(loaded, memory_bytes=0)
    first, longer, other = (
        asked(loaded, QUESTIONS[3] + more, workspace_id, max_tokens=200)
        for more, workspace_id in (("", "w"), ("and my card?", "w"), ("and my cards?", "theirs"))
    )
    for answer in (first, longer, other):
        slots.add(answer)
    begun: dict[Generation, int] = {}
    while slots.is_reading:
        unread = [answer for answer in (longer, other) if not answer.read]
        slots.step(16)
        begun |= {answer: answer.read for answer in unread if answer.read}
    assert begun[longer] > len(first.ids[: first.prompt_length]) - 20
    assert begun[other] == 16


def test_the_memory_of_what_was_read_is_bounded(loaded: Loaded) -> None:
    slots = Slots(loaded, memory_bytes=200_000)
    for number in range(12):
        together(slots, (0, asked(loaded, f"{number} " * 40, max_tokens=2)))
        assert sum(kept.cache.nbytes for kept in slots._kept) <= 200_000
    assert 0 < len(slots._kept) < 12


def test_a_long_prompt_is_read_in_pieces_while_others_speak(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "SHARED_CHUNK", 16)
    monkeypatch.setattr(slots_module, "SHORT_PROMPT", 8)
    slots = Slots(loaded)
    speaking, reading = (
        asked(loaded, QUESTIONS[0], max_tokens=100, temperature=1.5, seed=2),
        asked(loaded, QUESTIONS[3]),
    )
    slots.add(speaking)
    while speaking.is_reading:
        slots.step()
    slots.add(reading)
    while reading.is_reading:
        before = reading.read
        told = slots.step()
        assert reading.read - before <= 16
        assert speaking.is_done or told[0][0] is speaking
