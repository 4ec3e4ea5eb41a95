"""An external model, added and asked in the chat: the other server is a real one, our own API with another project."""

import socketserver
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from app.accounts.models import AuditEntry
from app.chat.models import ChatMessage
from app.contracts.conversation import Message
from app.contracts.generation import Sampling, TokenEvent
from app.core.config import get_settings
from app.core.db import reading
from app.core.errors import Unavailable
from app.externals import asking
from app.externals.asking import Endpoint
from app.externals.models import ExternalModel
from tests import serving, visitors
from tests.app.deployments.conftest import Stack, key_of
from tests.conftest import wait_for

CUT = b'data: {"choices": [{"delta": {"content": "Your card"}}]}\n\n'
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture(autouse=True)
def open_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator has opened this machine's own addresses."""
    monkeypatch.setenv("GPT_BUILDER_FETCH_NETWORKS", '["127.0.0.0/8"]')
    get_settings.cache_clear()


@pytest.fixture
def ana(app: FastAPI, broker: object) -> Iterator[TestClient]:
    person = visitors.make_person("Ana", "owner")
    browser = visitors.browser_of(app, person)
    browser.person, browser.project = person, visitors.make_project(person.workspace_id)  # type: ignore[attr-defined]
    with browser:
        yield browser


def add(ana: TestClient, url: str, model: str, key: str = "", name: str = "") -> str:
    """Add a model on the page; its reference, or the page with what is wrong."""
    form = {"url": url, "model": model, "key": key, "name": name}
    answer = ana.post(f"/projects/{ana.project}/external-models", data=form)  # type: ignore[attr-defined]
    if answer.status_code != 303:
        return answer.text
    with reading() as session:
        return f"external:{session.scalars(select(ExternalModel.id).order_by(ExternalModel.created_at.desc())).first()}"


def ask(ana: TestClient, model: str, **more: str) -> str:
    form = {"message": "Where is my card?", "model": model, "temperature": "0", "max_tokens": "8", **more}
    answer = ana.post(f"/projects/{ana.project}/chat", data=form)  # type: ignore[attr-defined]
    assert answer.status_code == 303, answer.text
    return answer.headers["location"].rsplit("/", 1)[1]


def answers(chat_id: str, count: int = 1) -> dict[str, ChatMessage]:
    def ready() -> list[ChatMessage]:
        with reading() as session:
            query = select(ChatMessage).where(ChatMessage.chat_id == chat_id, ChatMessage.role == "assistant")
            found = list(session.scalars(query))
        return found if len(found) == count and all(m.state != "streaming" for m in found) else []

    return {message.model_ref: message for message in wait_for(ready, "the answers are finished")}


def test_an_external_model_is_added_asked_and_compared_with_an_own_one(
    ana: TestClient, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = add(ana, f"{stack.url}/v1", stack.model, stack.key, "The other one")
    assert ref.startswith("external:"), ref
    monkeypatch.setenv("GPT_BUILDER_MODEL_SERVER_SOCKET", str(stack.home / "sockets" / "model.sock"))
    get_settings.cache_clear()
    person = ana.person  # type: ignore[attr-defined]
    own = serving.a_trained_model(person.workspace_id, ana.project, stack.folder)  # type: ignore[attr-defined]
    page = ana.get(f"/projects/{ana.project}/chat").text  # type: ignore[attr-defined]
    assert "The other one · 127.0.0.1" in page

    chat_id = ask(ana, own, compare=ref, system_prompt="Be kind.", odds="on")
    said = answers(chat_id, 2)
    there = said[ref]
    assert there.state == "done", there.error
    # The same weights, the same prompt: what was asked elsewhere is what was asked here.
    assert there.content == said[own].content
    assert there.statistics["prompt_tokens"] == said[own].statistics["prompt_tokens"]
    assert there.statistics["completion_tokens"] == 8
    assert there.statistics["total_s"] > there.statistics["first_token_s"] > 0
    assert len(there.statistics["odds"]) == 8
    assert "The other one" in ana.get(f"/chats/{chat_id}").text

    with reading() as session:
        row = session.scalars(select(ExternalModel)).one()
        assert stack.key not in row.sealed_key
        entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "external_model.add")).one()
        assert stack.key not in str(entry.details)
    root = f"/projects/{ana.project}/external-models"  # type: ignore[attr-defined]
    assert stack.key not in ana.get(root).text
    assert ana.post(f"{root}/{row.id}/key", data={"key": "wrong"}).status_code == 303
    assert "did not accept the key (401)" in ana.get(root).text
    assert ana.post(f"{root}/{row.id}/remove").status_code == 303
    assert "A model that was deleted" in ana.get(f"/chats/{chat_id}").text


def test_a_wrong_key_model_or_address_is_told_under_its_field(ana: TestClient, stack: Stack) -> None:
    url = f"{stack.url}/v1"
    assert 'id="field-key-error"' in add(ana, url, stack.model, "sk-wrong")
    assert "wants a key (401)" in add(ana, url, stack.model)
    unknown = add(ana, url, "gpt-9", stack.key)
    assert 'id="field-model-error"' in unknown
    assert f"It offers: {stack.model}" in unknown
    assert "has nothing at this address (404)" in add(ana, stack.url, stack.model, stack.key)
    assert "cannot be reached" in add(ana, "http://127.0.0.1:1/v1", "m")
    for odd in ("example.org/v1", "http://①②⑦.⓪.⓪.①/v1", "http://\u202eexample.org/v1", "http://[::1/v1"):
        assert "Write a whole address" in add(ana, odd, "m")
    assert add(ana, f"{url}/chat/completions/", stack.model, stack.key, "One").startswith("external:")
    assert "already there" in add(ana, url, stack.model, stack.key, "One")


def test_a_limit_that_is_reached_says_when_to_come_back(stack: Stack) -> None:
    endpoint = Endpoint(f"{stack.url}/v1", stack.model, key_of(stack, requests_per_minute=1))
    assert asking.tried(endpoint).total_s > 0
    with pytest.raises(Unavailable, match=r"\(429\).+Try again in \d+ seconds"):
        asking.tried(endpoint)


def test_private_addresses_stay_closed_until_they_are_opened(
    ana: TestClient, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPT_BUILDER_FETCH_NETWORKS")
    get_settings.cache_clear()
    assert "at a private address" in add(ana, f"{stack.url}/v1", stack.model, stack.key)


@contextmanager
def a_server(answer: bytes) -> Iterator[tuple[str, threading.Event]]:
    """A socket that reads a request, sends `answer` and, unless it is empty, hangs up; its address, and whether the
    other side has gone."""
    is_left = threading.Event()

    class Once(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while not self.request.recv(65_536).endswith(b"}"):
                pass
            self.request.sendall(answer)
            if not answer.endswith(CUT):
                while self.request.recv(65_536):
                    pass
                is_left.set()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Once) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", is_left
        server.shutdown()


def asked(url: str) -> Generator[TokenEvent]:
    return asking.stream(Endpoint(url, "m"), Sampling(), [Message(role="user", content="Hi")])


def test_a_cut_stream_is_an_error_that_keeps_what_had_come() -> None:
    with a_server(STREAM + f"{len(CUT) + 9:x}\r\n".encode() + CUT) as (url, _left):
        told = list(asked(url))
    assert "".join(event.text for event in told) == "Your card"
    assert told[-1].finish_reason == "error"
    assert "was cut in the middle" in str(told[-1].error)


def test_a_silent_server_is_told_and_a_stopped_answer_is_hung_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "HEARTBEAT_S", 0.05)
    with a_server(b"") as (url, is_left):
        silent = asked(url)
        assert next(silent).finish_reason is None, "a sign of life, so that nobody takes the answer for abandoned"
        silent.close()
        assert is_left.wait(30), "the other server is not kept busy"
    monkeypatch.setattr(asking, "READ_S", 0.2)
    with a_server(b"") as (url, _left):
        assert "did not answer in time" in str(list(asked(url))[-1].error)


def test_what_is_no_openai_server_is_told() -> None:
    page = b"<html>Welcome</html>"
    head = f"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {len(page)}\r\n\r\n".encode()
    with a_server(head + page) as (url, _left):
        assert "did not answer as OpenAI does" in str(list(asked(url))[-1].error)
    with a_server(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n") as (url, _left):
        assert "sends us on" in str(list(asked(url))[-1].error)


def test_a_server_that_does_not_stream_is_understood() -> None:
    whole = b'{"choices": [{"message": {"content": "On its way."}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 2, "completion_tokens": 4}}'  # noqa: E501
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(whole)}\r\n\r\n".encode()
    with a_server(head + whole) as (url, _left):
        *said, end = asked(url)
    assert "".join(event.text for event in said) == "On its way."
    assert (end.finish_reason, end.completion_tokens) == ("stop", 4)
