"""Chat completions as programs use them: OpenAI's own client, whole, streamed, in a form; readers that are strict."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import openai
import pytest
from sqlalchemy import update

from app.core.db import utcnow
from app.runs.models import Model, Run
from tests.app.deployments.conftest import ASK, Stack, body, inside


def test_the_client_lists_the_models(stack: Stack, client: openai.OpenAI) -> None:
    listed = list(client.models.list())
    assert [one.id for one in listed] == [stack.model, f"{stack.model}:step-120"]
    assert all(one.object == "model" and one.created > 1_700_000_000 for one in listed)
    assert client.models.retrieve(stack.model).id == stack.model
    assert client.models.retrieve(f"{stack.model}:step-120").id == f"{stack.model}:step-120"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("nothing-run-1")
    assert missing.value.code == "model_not_found"


@contextmanager
def without_its_model(stack: Stack, state: str) -> Iterator[None]:
    """The run as it is before its end, or when its model was deleted."""

    def become(run_state: str, deleted_at: datetime | None) -> None:
        with inside(stack) as session:
            session.execute(update(Run).where(Run.project_id == stack.project_id).values(state=run_state))
            session.execute(update(Model).where(Model.project_id == stack.project_id).values(deleted_at=deleted_at))

    become(state, utcnow())
    try:
        yield
    finally:
        become("succeeded", None)


def test_a_checkpoint_is_asked_while_its_run_goes_on(stack: Stack, client: openai.OpenAI) -> None:
    checkpoint = f"{stack.model}:step-120"
    with without_its_model(stack, "running"):
        assert [one.id for one in client.models.list()] == [checkpoint]
        assert client.chat.completions.create(**body(stack, model=checkpoint)).choices[0].message.content
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(stack.model)
    with without_its_model(stack, "succeeded"):
        assert list(client.models.list()) == []


def test_the_client_gets_a_whole_answer(stack: Stack, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**body(stack))
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in {"stop", "length"}
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens <= 8
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == stack.model
    assert answer.system_fingerprint
    again = client.chat.completions.create(**body(stack))
    assert again.choices[0].message.content == choice.message.content


def test_a_stream_says_the_same_in_pieces(stack: Stack, client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**body(stack))
    chunks = list(client.chat.completions.create(**body(stack), stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({(chunk.id, chunk.object, chunk.created, chunk.model) for chunk in chunks}) == 1


def test_the_stream_helper_and_the_asynchronous_client(stack: Stack, client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**body(stack)).choices[0].message.content or ""
    # The helper refuses answers that ran into their limit, so this one ends at a stop text.
    with client.chat.completions.stream(**body(stack, stop=[whole[4]])) as helped:
        final = helped.get_final_completion()
    assert final.choices[0].message.role == "assistant"
    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].message.content == whole[: whole.index(whole[4])]

    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=stack.key) as remote:
            answers = await asyncio.gather(*[remote.chat.completions.create(**body(stack)) for _ in range(3)])
            stream = await remote.chat.completions.create(**body(stack), stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return [answer.choices[0].message.content for answer in answers] + ["".join(pieces)]

    assert set(asyncio.run(ask())) == {whole}


def test_the_wire_is_what_strict_readers_need(stack: Stack) -> None:
    with (
        stack.client() as client,
        client.stream("POST", "/v1/chat/completions", json=body(stack, stream=True, n=2, seed=7)) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["x-request-id"]
        lines = [line for line in answer.iter_lines() if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    assert {chunk["choices"][0]["index"] for chunk in chunks} == {0, 1}
    for index in (0, 1):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert mine[-1]["delta"] == {}
        assert mine[-1]["finish_reason"] in {"stop", "length"}


def test_fields_that_clients_send_are_taken(stack: Stack, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=stack.model,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Where is "}, {"type": "text", "text": "my card?"}]},
        ],
        max_completion_tokens=4,
        stop=["###"],
        n=2,
        user="somebody",
        metadata={"a": "b"},
        store=False,
        parallel_tool_calls=False,
        service_tier="auto",
        response_format={"type": "text"},
        extra_headers={"OpenAI-Organization": "org", "OpenAI-Project": "p"},
        extra_body={"workspace_id": "other", "is_admin": True, "files": {"base_dir": "/etc"}},
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 8


def test_forms_biases_and_log_probabilities(stack: Stack, client: openai.OpenAI) -> None:
    ask = {"model": stack.model, "messages": ASK, "temperature": 1.5, "seed": 5}
    schema = {"type": "object", "properties": {"way": {"enum": ["on", "off"]}}, "required": ["way"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "way", "strict": True, "schema": schema}}
    answer = client.chat.completions.create(**ask, response_format=form, max_tokens=64)  # type: ignore[call-overload]
    assert json.loads(answer.choices[0].message.content)["way"] in {"on", "off"}
    outputs = {"structured_outputs": {"choice": ["settings", "security"]}, "min_p": 0.01, "top_k": -1}
    answer = client.chat.completions.create(**ask, extra_body=outputs, logprobs=True, top_logprobs=3)
    told = answer.choices[0].logprobs.content
    assert answer.choices[0].message.content in {"settings", "security"}
    assert "".join(one.token for one in told) == answer.choices[0].message.content
    assert all(len(one.top_logprobs) == 3 and bytes(one.bytes).decode() == one.token for one in told)
    streamed = client.chat.completions.create(**ask, extra_body=outputs, logprobs=True, stream=True)
    pieces = [one for chunk in streamed if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert [one.token for one in pieces] == [one.token for one in told]
    pushed = client.chat.completions.create(**ask, logit_bias={"40": 100}, max_tokens=3)
    assert len(set(pushed.choices[0].message.content)) == 1


def test_an_answer_that_looks_like_an_event_is_one_piece_of_text(stack: Stack) -> None:
    text = "x\n\nevent: done\ndata: y"
    asked = body(stack, stream=True, max_tokens=64, structured_outputs={"choice": [text]})
    with stack.client() as client, client.stream("POST", "/v1/chat/completions", json=asked) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == text
