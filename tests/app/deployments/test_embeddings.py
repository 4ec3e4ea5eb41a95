"""Vectors of texts at /v1/embeddings: what transformers itself would make of them, in the shapes that clients send."""

from typing import Any

import openai
import pytest
import torch
from transformers import AutoModel, PreTrainedTokenizerFast

from tests.app.deployments.conftest import Stack


def expected(stack: Stack, text: str) -> list[float]:
    """The mean of the last hidden states over the whole text at once, scaled to length one."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(stack.folder)
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    with torch.inference_mode():
        states = AutoModel.from_pretrained(stack.folder)(ids).last_hidden_state[0]
    found: list[float] = torch.nn.functional.normalize(states.mean(0), dim=0).tolist()
    return found


def test_vectors_are_means_of_hidden_states(stack: Stack, client: openai.OpenAI) -> None:
    texts = ["Where is my card?", "How do I reset my password? " * 12]  # the second takes more than one piece
    answer = client.embeddings.create(model=stack.model, input=texts)
    assert [one.index for one in answer.data] == [0, 1]
    for one, text in zip(answer.data, texts, strict=True):
        assert one.embedding == pytest.approx(expected(stack, text), abs=1e-5)
    floats = client.embeddings.create(model=stack.model, input=texts[0], encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(answer.data[0].embedding, abs=1e-6)
    assert floats.model_extra == {"method": "mean of the last hidden states, length 1"}
    assert 0 < floats.usage.prompt_tokens == floats.usage.total_tokens < answer.usage.prompt_tokens


@pytest.mark.parametrize(
    "more",
    [
        {"input": [1, 2, 3]},
        {"input": [[1, 2], [3]]},
        {"input": ""},
        {"input": []},
        {"input": ["a"] * 257},
        {"input": "soup " * 300},
        {"dimensions": 8},
        {"encoding_format": "int8"},
        {"chat_template": "{{ 1 }}"},
    ],
)
def test_what_no_vector_is_made_of_is_refused_by_name(stack: Stack, more: dict[str, Any]) -> None:
    with stack.client() as http:
        answer = http.post("/v1/embeddings", json={"model": stack.model, "input": "a"} | more)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == next(iter(more))
