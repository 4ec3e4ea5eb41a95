"""Requests to the API that mean harm, cannot be honoured or lack the right: each is refused by name."""

import functools
import json
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from app.core.errors import BadRequest
from app.deployments import completions, fine_tuning, wire
from tests.app.deployments.conftest import ASK, Stack, body, key_of

# A schema of nine hundred objects in each other.
DEEP: dict[str, Any] = functools.reduce(lambda inner, _: {"properties": {"a": inner}}, range(450), {"type": "string"})
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}])
def test_tools_that_a_model_may_leave_alone_are_left_alone(stack: Stack, choice: dict[str, Any]) -> None:
    with stack.client() as client:
        plain = client.post("/v1/chat/completions", json=body(stack)).json()
        offered = client.post("/v1/chat/completions", json=body(stack) | {"tools": TOOLS} | choice)
    assert offered.status_code == 200, offered.text
    assert offered.json()["choices"] == plain["choices"]


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
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": DEEP}}}, "response_format"),
        ({"structured_outputs": {"json": DEEP}}, "structured_outputs"),
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
    if "image_url" in str(more):
        assert "reads text only" in error["message"]


@pytest.mark.parametrize(
    ("shape", "wrong", "said"),
    [
        (wire.ChatRequest, {"messages": "x"}, "messages: This must be a list."),
        (wire.ChatRequest, {"messages": [None]}, "messages.0: This must be an object."),
        (wire.ChatRequest, {"messages": []}, "messages: This has fewer than 1 entries."),
        (wire.ChatRequest, {"messages": [{"role": "user", "content": 5}]},
         "messages.0.content: This must be a text or a list."),
        (wire.ChatRequest, {"stop": 5}, "stop: This must be a text or a list."),
        (wire.ChatRequest, {"top_p": 0}, "top_p: This must be more than 0."),
        (wire.ChatRequest, {"stream": "perhaps"}, "stream: This must be true or false."),
        (wire.ChatRequest, {"logit_bias": {"a\nb": 1}}, "logit_bias: This must be a whole number."),
        (wire.ChatRequest, {"response_format": {"type": "x"}},
         "response_format.type: This must be “text”, “json_object” or “json_schema”."),
        (completions.TextRequest, {"prompt": [1.5]}, "prompt.0: This must be a text, a whole number or a list."),
        (fine_tuning.JobRequest, {"hyperparameters": {"n_epochs": 0}},
         "hyperparameters.n_epochs: This must be more than 0."),
        (fine_tuning.JobRequest, {"hyperparameters": {"n_epochs": "many"}},
         "hyperparameters.n_epochs: This must be “auto” or a number."),
    ],
)  # fmt: skip
def test_wrong_values_are_told_in_plain_words(shape: type[BaseModel], wrong: dict[str, Any], said: str) -> None:
    whole = {"model": "m", "messages": ASK, "prompt": "x", "training_file": "f"}
    with pytest.raises(BadRequest) as refused:
        wire.parsed(shape, json.dumps(whole | wrong).encode())
    assert refused.value.sentence == said


def test_addresses_and_forms_are_refused_in_the_shape_that_clients_read(stack: Stack) -> None:
    cut = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nx'
    two = b"\r\n".join([cut, cut, b"--b--", b""])
    form = {"content-type": "multipart/form-data; boundary=b"}
    with stack.client(key_of(stack, scopes=["read", "train"])) as client:
        assert client.get("/v1/files/%00").json()["error"]["code"] == "bad_request"
        for content in (cut, two, b"nothing"):
            answer = client.post("/v1/files", content=content, headers=form)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file"), content


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


def test_a_key_of_one_model_opens_no_other(stack: Stack) -> None:
    with stack.client(key_of(stack, models=["another-run-1"])) as http:
        assert http.get("/v1/models").json()["data"] == []
        assert http.get(f"/v1/models/{stack.model}").status_code == 404
        assert http.post("/v1/chat/completions", json=body(stack)).status_code == 404
    with stack.client(key_of(stack, models=[stack.model])) as http:
        listed = [one["id"] for one in http.get("/v1/models").json()["data"]]
        assert listed == [stack.model, f"{stack.model}:step-120"]
        assert http.post("/v1/chat/completions", json=body(stack, model=listed[1])).status_code == 200
