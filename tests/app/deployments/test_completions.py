"""A plain text goes on at /v1/completions, and its tokens are told as evaluation programs need them."""

from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.app.deployments.conftest import Stack


def test_a_text_goes_on_for_the_client(stack: Stack, client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": stack.model, "prompt": "Where is my", "max_tokens": 6, "temperature": 0}
    answer = client.completions.create(**asked, logprobs=2)
    choice = answer.choices[0]
    assert answer.object == "text_completion"
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.top_logprobs is not None
    assert len(choice.logprobs.token_logprobs) == answer.usage.completion_tokens  # type: ignore[union-attr]
    # Greedy: what was said is the likeliest of what is told.
    for said, top in zip(choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True):
        assert said == max(top.values())
    streamed = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices) == choice.text
    assert streamed[-1].usage == answer.usage
    assert streamed[-2].choices[0].finish_reason == choice.finish_reason
    echoed = client.completions.create(**asked | {"prompt": ["Where is my", "Open the"]}, n=2, echo=True)
    assert [one.index for one in echoed.choices] == [0, 1, 2, 3]
    begins = ["Where is my", "Where is my", "Open the", "Open the"]
    assert all(one.text.startswith(begin) for one, begin in zip(echoed.choices, begins, strict=True))
    assert echoed.choices[0].text == "Where is my" + choice.text


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt.1"),
        ({"prompt": [1, -1]}, "prompt.1"),
        ({"prompt": [5, 400_000], "echo": True, "logprobs": 1}, "prompt"),
        ({"prompt": ["a"] * 33}, "prompt"),
        ({"prompt": "soup " * 200, "echo": True, "logprobs": 1}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ],
)
def test_what_a_text_cannot_have_is_refused_by_name(stack: Stack, more: dict[str, Any], param: str) -> None:
    with stack.client() as http:
        answer = http.post("/v1/completions", json={"model": stack.model, "prompt": "a", "max_tokens": 2} | more)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_a_text_and_its_token_ids_are_told_alike_and_as_transformers_reads_them(
    stack: Stack, client: openai.OpenAI
) -> None:
    text = "Where is my café 🧀 card? It is"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(stack.folder)
    ids = tokenizer.encode(text, add_special_tokens=False)
    asked: dict[str, Any] = {"model": stack.model, "echo": True, "logprobs": 2, "max_tokens": 0}
    answer = client.completions.create(**asked, prompt=[text, "Open the"])
    told = answer.choices[0].logprobs
    assert told is not None
    assert (answer.choices[0].text, answer.choices[1].text) == (text, "Open the")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
    assert answer.usage.prompt_tokens == len(ids) + len(tokenizer.encode("Open the", add_special_tokens=False))
    model = AutoModelForCausalLM.from_pretrained(stack.folder)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    assert told.token_logprobs is not None
    assert told.token_logprobs[0] is None
    found = [one for one in told.token_logprobs[1:] if one is not None]
    assert found == pytest.approx([float(row[one]) for row, one in zip(expected, ids[1:], strict=True)], abs=1e-4)
    # Each token begins where the text before it ends; a character of several tokens begins at the first of them.
    assert told.text_offset == [len(tokenizer.decode(ids[:at]).rstrip("\ufffd")) for at in range(len(ids))]
    assert told.top_logprobs is not None
    assert told.top_logprobs[0] is None
    for row, top in zip(expected, told.top_logprobs[1:], strict=True):
        assert sorted(top.values())[-2:] == pytest.approx(sorted(row.topk(2).values.tolist()), abs=1e-4)
    by_ids = client.completions.create(**asked, prompt=[ids, ids[:3]]).choices
    assert (by_ids[0].text, by_ids[0].logprobs) == (text, told)
    assert by_ids[1].logprobs is not None
    shorter = by_ids[1].logprobs.token_logprobs or []
    assert (len(shorter), shorter[0]) == (3, None)
    assert shorter[1:] == pytest.approx(told.token_logprobs[1:3], abs=1e-4)


def test_what_a_harness_calls_greedy_is_what_the_model_says(stack: Stack, client: openai.OpenAI) -> None:
    """The arithmetic of lm-evaluation-harness: a context, its continuation, and one more token that is left out."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(stack.folder)
    context = tokenizer.encode("Where is my", add_special_tokens=False)
    said = client.completions.create(model=stack.model, prompt=context, max_tokens=4, temperature=0, logprobs=1)
    assert said.choices[0].logprobs is not None
    vocabulary = {tokenizer.decode([one]): one for one in tokenizer.get_vocab().values()}
    greedy = [vocabulary[token] for token in said.choices[0].logprobs.tokens or []]
    other = [*greedy[:1], next(one for one in context if one != greedy[1]), *greedy[2:]]
    answer = client.completions.create(
        model=stack.model,
        prompt=[context + greedy, context + other],
        max_tokens=1,
        echo=True,
        logprobs=1,
        temperature=0,
    )
    sums, are_greedy = [], []
    for choice in answer.choices:
        assert choice.logprobs is not None
        lists = zip(choice.logprobs.token_logprobs or [], choice.logprobs.top_logprobs or [], strict=True)
        told = list(lists)[len(context) : -1]
        sums.append(sum(one for one, _ in told))
        are_greedy.append(all(one == max(top.values()) for one, top in told))
        assert choice.text.startswith("Where is my" + said.choices[0].text[:1])
    assert are_greedy == [True, False]
    assert sums[0] == pytest.approx(sum(said.choices[0].logprobs.token_logprobs or []), abs=1e-3)
    assert sums[1] < sums[0]


def test_a_stream_tells_the_prompt_and_the_answer_in_one_line_of_places(stack: Stack, client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": stack.model, "prompt": "Where is my", "max_tokens": 6, "temperature": 0}
    asked |= {"echo": True, "logprobs": 1}
    whole = client.completions.create(**asked).choices[0]
    pieces = [chunk.choices[0] for chunk in client.completions.create(**asked, stream=True)]
    assert "".join(piece.text for piece in pieces) == whole.text
    assert whole.logprobs is not None
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        streamed = [one for piece in pieces if piece.logprobs for one in getattr(piece.logprobs, name)]
        assert streamed == getattr(whole.logprobs, name), name
    offsets = whole.logprobs.text_offset or []
    assert offsets == sorted(offsets)
    assert offsets[-1] > len("Where is my")
