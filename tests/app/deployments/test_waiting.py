"""A model that training leaves no memory for is unavailable at the API, with the time when asking again helps."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from app.contracts.generation import Waiting
from app.contracts.room import Room
from app.deployments import stream
from app.inference import client
from app.inference.waiting import retry_after_s
from app.main import create_app
from tests.app.deployments.conftest import Stack, at_home, body


@pytest.fixture
def http(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """The API in this process beside the stack's own model server, without patience, while something trains."""
    monkeypatch.setattr(stream, "LOADING_PATIENCE_S", 0.0)
    headers = {"authorization": f"Bearer {stack.key}"}
    with at_home(stack), TestClient(create_app(), base_url="http://localhost", headers=headers) as http:
        client.hold_room(Room(attempt_id="theirs", held_bytes=10**15, left_s=720, lapses_s=600))
        yield http
        client.end_room("theirs")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_clients_are_told_when_to_come_back(
    stack: Stack, http: TestClient, is_streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = http.post("/v1/chat/completions", json=body(stack, stream=is_streamed))
    assert refused.status_code == 503, refused.text
    assert refused.headers["retry-after"] == "600", "the training takes longer, but may end sooner, too"
    error = refused.json()["error"]
    assert error["code"] == "model_waiting"
    assert "Training holds the memory until about" in error["message"]
    client.end_room("theirs")
    monkeypatch.setattr(stream, "LOADING_PATIENCE_S", 300.0)
    assert http.post("/v1/chat/completions", json=body(stack)).status_code == 200


def test_when_to_ask_again() -> None:
    found = [retry_after_s(Waiting(why="memory", training_left_s=left_s)) for left_s in (0.0, 42.2, 9000.0, None)]
    assert found == [10, 43, 600, 60]
