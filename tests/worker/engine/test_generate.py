"""Answers of our engine against transformers' own, alone and in company."""

import pytest
import torch

from app.contracts.conversation import Message
from app.contracts.generation import GenerationRequest, Sampling, TokenEvent
from app.contracts.recipe import ModelFiles
from app.text.tokens import encode_prompt
from tests.worker.tiny import make_model
from worker.engine import generate, scoring
from worker.engine.errors import BadData
from worker.engine.generate import Generation, Loaded, fit_prompt, load

ASK = [Message(role="user", content="How do I reset my password?")]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = make_model(tmp_path_factory.mktemp(request.param), architecture=request.param)
    return load(ModelFiles(base_dir=str(folder)))


def _request(loaded: Loaded, messages: list[Message] | None = None, **sampling: object) -> GenerationRequest:
    files = ModelFiles(base_dir="unused")
    return GenerationRequest(
        model_ref="m", workspace_id="w", files=files, messages=messages or ASK, sampling=Sampling(**sampling)
    )


def _run(*generations: Generation) -> list[list[TokenEvent]]:
    told: list[list[TokenEvent]] = [[] for _ in generations]
    while not all(g.is_done for g in generations):
        for generation, events in zip(generations, told, strict=True):
            if not generation.is_done and (event := generation.step()):
                events.append(event)
    return told


def _text(events: list[TokenEvent]) -> str:
    return "".join(event.text for event in events)


def _reference(loaded: Loaded, messages: list[Message], tokens: int) -> str:
    ids, _ = fit_prompt(loaded, _request(loaded, messages, max_tokens=tokens))
    out = loaded.model.generate(
        torch.tensor([ids]), max_new_tokens=tokens, do_sample=False, eos_token_id=list(loaded.end_ids), pad_token_id=0
    )
    said = out[0, len(ids) :].tolist()
    # A character that is not whole at the end is never told.
    return loaded.tokenizer.decode([i for i in said if i not in loaded.end_ids]).rstrip("\ufffd")


def test_greedy_equals_transformers_alone_and_joined_late(loaded: Loaded) -> None:
    other = [Message(role="user", content="Where is my card? " * 3)]
    first = Generation(loaded, _request(loaded, temperature=0, max_tokens=24))
    for _ in range(5):
        first.step()
    second = Generation(loaded, _request(loaded, other, temperature=0, max_tokens=24))
    early, late = _run(first, second)
    assert _text(late).rstrip("\ufffd") == _reference(loaded, other, 24)
    assert _reference(loaded, ASK, 24).endswith(_text(early).rstrip("\ufffd"))


def test_the_same_seed_gives_the_same_answer_in_company(loaded: Loaded) -> None:
    def ask(seed: int) -> Generation:
        return Generation(loaded, _request(loaded, temperature=1.0, seed=seed, max_tokens=20, top_p=0.9))

    (alone,) = _run(ask(7))
    together, other = _run(ask(7), ask(8))
    assert _text(alone) == _text(together)
    assert _text(alone) != _text(other)


def test_a_stop_string_across_tokens_ends_the_answer_and_is_left_out(loaded: Loaded) -> None:
    (whole,) = _run(Generation(loaded, _request(loaded, temperature=0, max_tokens=24)))
    text = _text(whole)
    assert len(text) > 8
    stop = text[4:8]
    (cut,) = _run(Generation(loaded, _request(loaded, temperature=0, max_tokens=24, stop=[stop])))
    assert _text(cut) == text[: text.index(stop)]
    assert cut[-1].finish_reason == "stop"


def test_length_and_counts(loaded: Loaded) -> None:
    (events,) = _run(Generation(loaded, _request(loaded, temperature=1.5, seed=3, max_tokens=5)))
    assert events[-1].finish_reason in {"length", "stop"}
    assert (events[-1].completion_tokens or 0) <= 5
    assert (events[-1].prompt_tokens or 0) > 5


def test_old_turns_leave_from_the_front_with_their_answers(loaded: Loaded) -> None:
    talk = [Message(role="system", content="Be kind.")]
    for _ in range(8):
        talk += [Message(role="user", content="Where is my card?"), Message(role="assistant", content="On its way.")]
    talk.append(Message(role="user", content="How?"))
    ids, dropped = fit_prompt(loaded, _request(loaded, talk, max_tokens=16))
    text = loaded.tokenizer.decode(ids, skip_special_tokens=False)
    assert len(ids) <= loaded.context_length - 16
    assert dropped > 0
    assert dropped % 2 == 0
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user")
    assert text.endswith("user\nHow?<|im_end|>\n<|im_start|>assistant\n")


def test_a_message_that_can_never_fit_is_refused_with_numbers(loaded: Loaded) -> None:
    with pytest.raises(BadData, match=r"too long: \d+ tokens, and this model reads 128"):
        Generation(loaded, _request(loaded, [Message(role="user", content="word " * 500)]))


def test_what_is_surely_too_long_is_not_read_and_many_turns_are_read_a_few_times(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(*given: object) -> list[int]:
        read.append(len(given[2]))  # type: ignore[arg-type]
        return encode_prompt(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(generate, "encode_prompt", counted)
    with pytest.raises(BadData, match="too long: more than 112 tokens"):
        fit_prompt(loaded, _request(loaded, [Message(role="user", content="a" * 7_000_000)], max_tokens=16))
    assert not read
    ids, dropped = fit_prompt(loaded, _request(loaded, [Message(role="user", content="")] * 2000, max_tokens=16))
    assert 0 < len(ids) <= loaded.context_length - 16
    assert (
        len(encode_prompt(loaded.tokenizer, loaded.template, [Message(role="user", content="")] * (2001 - dropped)))
        > 112
    )
    assert len(read) <= 12, "halved each time, not turn by turn"


def test_score_is_the_models_own_probability(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PIECE", 3)  # so that the answer and what stands before it are read in pieces
    answer = "Open the settings"
    result = scoring.score(loaded, ASK, "", answer)
    whole = loaded.template.text([*ASK, Message(role="assistant", content=answer)])
    loaded.tokenizer.encode_special_tokens = False
    ids = loaded.tokenizer.encode(whole.rstrip("\n"), add_special_tokens=False).ids
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    picked = [float(logits[i - 1, ids[i]]) for i in range(len(ids) - result.tokens, len(ids))]
    assert result.tokens == len(loaded.tokenizer.encode(answer).ids) + 1
    assert result.log_probability == pytest.approx(sum(picked), abs=1e-3)
