"""The API as programs use it: OpenAI's own client, the programs on the page, and requests that mean harm."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy.orm import Session

from app.core import config, db
from app.core.db import transaction
from app.core.errors import Invalid
from app.deployments import keys
from app.deployments.snippets import snippets
from app.drafting import asking
from tests.app.deployments.conftest import Stack
from tests.conftest import wait_for
from tests.factories import a_version
from tests.visitors import Person

ASK: list[Any] = [{"role": "user", "content": "Where is my card?"}]


@pytest.fixture
def client(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0)


def body(stack: Stack, **more: Any) -> dict[str, Any]:
    return {"model": stack.model, "messages": ASK, "max_tokens": 8, "temperature": 0, **more}


def test_the_client_lists_the_models(stack: Stack, client: openai.OpenAI) -> None:
    listed = list(client.models.list())
    assert [one.id for one in listed] == [stack.model, f"{stack.model}:step-120"]
    assert all(one.object == "model" and one.created > 1_700_000_000 for one in listed)
    assert client.models.retrieve(stack.model).id == stack.model
    assert client.models.retrieve(f"{stack.model}:step-120").id == f"{stack.model}:step-120"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("nothing-run-1")
    assert missing.value.code == "model_not_found"


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


@pytest.mark.parametrize("name", ["chat_template", "chat_template_kwargs"])
@pytest.mark.parametrize("value", ["{{ 1 }}", None, {}])
def test_templates_of_callers_are_refused(stack: Stack, name: str, value: Any) -> None:
    with stack.client() as client:
        answer = client.post("/v1/chat/completions", json=body(stack) | {name: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == name


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}}, "response_format"),
        ({"structured_outputs": {"regex": "(a"}}, "response_format"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"min_p": 2}, "min_p"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "http://x"}]}]}, "messages"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 10**300}, "temperature"),
        ({"n": 1000}, "n"),
        ({"stop": ["x"] * 100_000}, "stop"),
        ({"seed": 10**30}, "seed"),
        ({"model": 5}, "model"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(stack: Stack, more: dict[str, Any], param: str) -> None:
    with stack.client() as client:
        answer = client.post("/v1/chat/completions", json=body(stack) | more)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(param)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model": "m", "temperature": NaN}',
        b'{"model": "m", "temperature": 1e400}',
        b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b"[" * 100_000,
        b"{",
        b"",
        b"[]",
        b"\xff\xfe",
        b'"text"',
    ],
)
def test_broken_bodies_are_refused_quickly(stack: Stack, raw: bytes) -> None:
    with stack.client() as client:
        answer = client.post("/v1/chat/completions", content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_too_much_is_refused(stack: Stack) -> None:
    with stack.client() as client:
        long = client.post("/v1/chat/completions", content=b"x" * (9 * 2**20))
        many = client.post("/v1/chat/completions", json=body(stack) | {"messages": ASK * 100_000})
        words = client.post(
            "/v1/chat/completions", json=body(stack) | {"messages": [{**ASK[0], "content": "a " * 900}]}
        )
    assert long.status_code == 413
    assert long.json()["error"]["code"] == "too_large"
    assert many.status_code == 400
    assert words.status_code == 400
    assert words.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "model",
    ["../../x", "C:\\x", "org/name/../..", "m" * 200, "support-sorter-run-1\n", "SUPPORT-SORTER-RUN-1", "' OR 1=1--"],
)
def test_odd_model_ids_are_simply_not_there(stack: Stack, model: str) -> None:
    with stack.client() as client:
        answer = client.post("/v1/chat/completions", json=body(stack, model=model))
        missing = client.post("/v1/chat/completions", json=body(stack, model="nothing-run-9"))
    assert answer.status_code == 404
    assert answer.json() == missing.json()


@pytest.mark.parametrize("header", ["", "Bearer", "Basic abc", "Bearer sk-x", "Bearer ' OR 1=1--", "Bearer \xff"])
def test_without_a_good_key_nothing_opens(stack: Stack, header: str) -> None:
    answers = []
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions")):
        answer = httpx.request(method, stack.url + path, headers={"authorization": header.encode("latin-1")})
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
        answers.append(answer.json())
    assert answers[0] == answers[1]


def test_a_key_without_the_scope_is_refused(stack: Stack) -> None:
    with stack.client(stack.listing_key) as client:
        assert client.get("/v1/models").status_code == 200
        answer = client.post("/v1/chat/completions", json=body(stack))
    assert answer.status_code == 403
    assert "chat" in answer.json()["error"]["message"]


def test_the_same_idempotency_key_asks_once(stack: Stack) -> None:
    headers = {"idempotency-key": "order-77"}
    with stack.client() as client:
        first = client.post("/v1/chat/completions", json=body(stack, temperature=1), headers=headers)
        second = client.post("/v1/chat/completions", json=body(stack, temperature=1), headers=headers)
        other = client.post("/v1/chat/completions", json=body(stack, temperature=0.5), headers=headers)
        failing = {"idempotency-key": "order-78"}
        client.post("/v1/chat/completions", json=body(stack) | {"model": "nothing-run-1"}, headers=failing)
        retried = client.post("/v1/chat/completions", json=body(stack), headers=failing)
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert other.status_code == 400
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    assert retried.status_code == 200


def test_ten_at_once_with_one_idempotency_key_make_one_answer(stack: Stack) -> None:
    def ask(_: int) -> tuple[int, str]:
        with stack.client() as client:
            answer = client.post(
                "/v1/chat/completions", json=body(stack, temperature=1), headers={"idempotency-key": "crowd"}
            )
            return answer.status_code, answer.json().get("id", "")

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(ask, range(10)))
    assert {status for status, _ in found} <= {200, 409}
    assert len({name for status, name in found if status == 200}) == 1


def test_calls_are_counted_without_their_texts(stack: Stack) -> None:
    question = "a very particular question about soup"
    with stack.client() as client:
        client.post("/v1/chat/completions", json=body(stack, messages=[{"role": "user", "content": question}]))

    def newest() -> Any:
        with sqlite3.connect(stack.home / "gpt-builder.db") as database:
            return database.execute(
                "SELECT model_ref, status, prompt_tokens, completion_tokens, total_s, project_id FROM api_calls"
                " WHERE status = 200 ORDER BY at DESC LIMIT 1"
            ).fetchone()

    model, status, read, made, total_s, project_id = wait_for(newest, "the call is written down")
    assert (model, status, project_id) == (stack.model, 200, stack.project_id)
    assert read > 0
    assert made > 0
    assert total_s > 0
    with sqlite3.connect(stack.home / "gpt-builder.db") as database:
        rows = list(database.execute("SELECT * FROM api_calls"))
        assert question not in str(rows)
        assert database.execute("SELECT last_used_at FROM api_keys WHERE last_used_at IS NOT NULL").fetchone()
        dump = "\n".join(database.iterdump())
    assert stack.key not in dump
    assert stack.key.split("_", 1)[1] not in dump


def test_a_client_that_leaves_frees_the_model(stack: Stack) -> None:
    def active() -> int:
        transport = httpx.HTTPTransport(uds=str(stack.home / "sockets" / "model.sock"))
        with httpx.Client(transport=transport, base_url="http://model") as client:
            health = client.get("/health").json()
        return int(health["active"]) + int(health["waiting"])

    long = body(stack, max_tokens=30_000, stream=True, temperature=1)
    with stack.client() as client, client.stream("POST", "/v1/chat/completions", json=long) as answer:
        next(answer.iter_raw())
    left_at = time.monotonic()
    wait_for(lambda: active() == 0, "the model is free again")
    assert time.monotonic() - left_at < 10


@pytest.mark.parametrize("language", ["curl", "python", "javascript"])
def test_the_programs_on_the_page_run_as_they_are(stack: Stack, tmp_path: Path, language: str) -> None:
    question = 'I\'ve "read" it:\n$HOME \\ `ls` ${1} {0} – why?!'
    program = next(one for one in snippets(f"{stack.url}/v1", stack.model, question) if one.key == language)
    assert "I’ve ”read” it: $HOME / `ls` ${1} {0} – why?!" in program.text
    path = tmp_path / {"curl": "ask.sh", "python": "ask.py", "javascript": "ask.mjs"}[language]
    path.write_text(program.text)
    runner = {"curl": "bash", "python": sys.executable, "javascript": "node"}[language]
    try:
        done = subprocess.run(
            [runner, str(path)],
            env={**os.environ, "GPT_BUILDER_API_KEY": stack.key},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip(f"{runner} is not installed here")
    assert done.returncode == 0, done.stderr
    if language == "curl":
        assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant"
    else:
        assert done.stdout.strip()


def test_the_page_asks_the_model_too(stack: Stack) -> None:
    person: Person = stack.owner
    with httpx.Client(base_url=stack.url, cookies={"sid": person.cookie}, headers={"accept": "text/html"}) as browser:
        page = browser.get(f"/projects/{stack.project_id}/deploy").text
        assert stack.model in page
        token = page.split('name="csrf_token" value="')[1].split('"')[0]
        form = {"model": stack.model, "question": "Where is my card?", "csrf_token": token}
        answer = browser.post(f"/projects/{stack.project_id}/deploy/try", data=form, timeout=60)
    assert answer.status_code == 200
    assert 'id="answer"' in answer.text


def test_drafts_are_written_by_this_products_own_api(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_BUILDER_FETCH_NETWORKS", '["127.0.0.0/8"]')
    config.get_settings.cache_clear()
    question = "Ask one thing about soup."  # the tiny model reads 128 tokens
    said = asking.ask(asking.Endpoint(f"{stack.url}/v1", stack.model, stack.key), question)
    assert isinstance(said, str)
    with pytest.raises(Invalid, match=r"refused \(401\)"):
        asking.ask(asking.Endpoint(f"{stack.url}/v1", stack.model, "wrong"), question)
    with pytest.raises(Invalid, match="no such model"):
        asking.ask(asking.Endpoint(f"{stack.url}/v1", "nobody-run-9", stack.key), question)


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
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"echo": True, "logprobs": 1}, "echo"),
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


@contextmanager
def inside(stack: Stack) -> Iterator[Session]:
    """The stack's own database and home, for rows that a test needs there."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GPT_BUILDER_HOME", str(stack.home))
    config.get_settings.cache_clear()
    db.forget_engine()
    try:
        with transaction() as session:
            yield session
    finally:
        patch.undo()
        db.forget_engine()
        config.get_settings.cache_clear()


def key_of(stack: Stack, **more: Any) -> str:
    """A new key of the stack's project."""
    values: dict[str, Any] = {"name": "limited", "scopes": ["read", "chat"]} | more
    with inside(stack) as session:
        return keys.make(session, stack.owner.actor, stack.project_id, **values)[1]


def test_tokens_of_a_minute_and_of_a_month_run_out(stack: Stack) -> None:
    with stack.client(key_of(stack, tokens_per_minute=5)) as http:
        first = http.post("/v1/chat/completions", json=body(stack))
        assert first.status_code == 200
        assert first.headers["x-ratelimit-limit-tokens"] == "5"
        assert first.headers["x-ratelimit-remaining-tokens"] == "5"
        wait_for(lambda: http.get("/v1/models").headers["x-ratelimit-remaining-tokens"] == "0", "tokens are counted")
        second = http.post("/v1/chat/completions", json=body(stack))
        # Unless the clock's minute turned over just now: then the window is a new one.
        if second.headers.get("x-ratelimit-remaining-tokens") == "0":
            assert second.status_code == 429
            assert second.json()["error"]["code"] == "rate_limit_exceeded"
            assert 0 < float(second.headers["retry-after"]) <= 60
    with stack.client(key_of(stack, monthly_tokens=5)) as http:
        assert http.post("/v1/chat/completions", json=body(stack)).status_code == 200

        def refused() -> Any:
            answer = http.post("/v1/completions", json={"model": stack.model, "prompt": "a", "max_tokens": 1})
            return answer if answer.status_code == 429 else None

        assert wait_for(refused, "the budget is used up").json()["error"]["code"] == "insufficient_quota"


def test_a_key_of_one_model_opens_no_other(stack: Stack) -> None:
    with stack.client(key_of(stack, models=["another-run-1"])) as http:
        assert http.get("/v1/models").json()["data"] == []
        assert http.get(f"/v1/models/{stack.model}").status_code == 404
        assert http.post("/v1/chat/completions", json=body(stack)).status_code == 404
    with stack.client(key_of(stack, models=[stack.model])) as http:
        listed = [one["id"] for one in http.get("/v1/models").json()["data"]]
        assert listed == [stack.model, f"{stack.model}:step-120"]
        assert http.post("/v1/chat/completions", json=body(stack, model=listed[1])).status_code == 200


def test_the_client_trains_on_a_frozen_version(stack: Stack) -> None:
    with inside(stack) as session:
        version_id = a_version(session, stack.project_id).id
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key=key_of(stack, scopes=["read", "train"]), max_retries=0)
    (file,) = client.files.list()
    assert (file.id, file.purpose, file.status) == (f"file-{version_id}", "fine-tune", "processed")
    assert client.files.retrieve(file.id).bytes == file.bytes > 0
    rows = [json.loads(line) for line in client.files.content(file.id).text.splitlines()]
    assert len(rows) == 48
    asked: dict[str, Any] = {
        "model": "starter",
        "training_file": file.id,
        "suffix": "By the client",
        "seed": 7,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
    }
    job = client.fine_tuning.jobs.create(**asked, extra_headers={"idempotency-key": "once"})
    again = client.fine_tuning.jobs.create(**asked, extra_headers={"idempotency-key": "once"})
    assert again.id == job.id
    assert (job.status, job.model, job.seed, job.training_file) == ("queued", job.model, 7, file.id)
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (2, 4)
    assert job.id in [one.id for one in client.fine_tuning.jobs.list(limit=1)], "pages are walked to the end"
    assert client.fine_tuning.jobs.list_events(job.id).data[0].message == "Queued."
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError) as ended:
        client.fine_tuning.jobs.cancel(job.id)
    assert ended.value.code == "invalid_state"
    finished = next(one for one in client.fine_tuning.jobs.list() if one.status == "succeeded")
    assert finished.fine_tuned_model == stack.model
    (kept,) = client.fine_tuning.jobs.checkpoints.list(finished.id)
    assert kept.fine_tuned_model_checkpoint == f"{stack.model}:step-120"
    for wrong, param in (({"model": "gpt-9"}, "model"), ({"validation_file": file.id}, "validation_file")):
        with pytest.raises(openai.BadRequestError) as refused:
            client.fine_tuning.jobs.create(**asked | wrong)
        assert refused.value.param == param


def test_training_needs_its_own_scope(stack: Stack, client: openai.OpenAI) -> None:
    for call in (
        lambda: client.fine_tuning.jobs.create(model="starter", training_file="file-x"),
        lambda: client.fine_tuning.jobs.cancel("ftjob-x"),
        lambda: client.files.content("file-x"),
    ):
        with pytest.raises(openai.PermissionDeniedError):
            call()
