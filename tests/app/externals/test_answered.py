"""One whole answer for work in the background: a busy server is asked again, a refusal is not; money has a limit."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from app.contracts.conversation import Message
from app.contracts.generation import Sampling
from app.core.config import get_settings
from app.core.db import transaction, utcnow
from app.core.errors import Invalid, Unavailable
from app.evaluations.outside import MOST_FAILURES, Outside
from app.externals import asking
from app.externals.asking import Endpoint
from app.externals.models import ExternalModel
from tests import visitors

HI = [Message(role="user", content="Hi")]
SAID = {"choices": [{"message": {"content": "Hello."}, "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}


class Script(ThreadingHTTPServer):
    """Answers with its statuses one after another, and with a whole answer once they are used up."""

    daemon_threads = True

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.statuses, self.asked = list(statuses), 0

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"http://127.0.0.1:{self.server_address[1]}/v1", "m")


class _Answers(BaseHTTPRequestHandler):
    server: Script

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.asked += 1
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        text = json.dumps(SAID if status == 200 else {"error": {"message": "not now"}}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        if status == 429:
            self.send_header("retry-after", "0")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@contextmanager
def script(*statuses: int) -> Iterator[Script]:
    server = Script(*statuses)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ASK_AGAIN_S", 0.0)
    monkeypatch.setenv("GPT_BUILDER_FETCH_NETWORKS", '["127.0.0.0/8"]')
    get_settings.cache_clear()


def answered(server: Script, is_wanted: bool = True):
    return asking.answered(server.endpoint, Sampling(), HI, lambda: is_wanted)


def test_a_busy_server_is_asked_again_when_it_says() -> None:
    with script(429, 503) as server:
        event = answered(server)
    assert (event.text, event.completion_tokens, event.finish_reason) == ("Hello.", 2, "stop")
    assert server.asked == 3


def test_one_question_is_sent_four_times_at_most() -> None:
    with script(*[500] * 9) as server, pytest.raises(Unavailable, match="trouble of its own"):
        answered(server)
    assert server.asked == asking.MOST_QUESTIONS == 4


def test_a_wait_beyond_patience_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ASK_AGAIN_S", asking.PATIENCE_S + 1)
    with script(503) as server, pytest.raises(Unavailable):
        answered(server)
    assert server.asked == 1


def test_a_refusal_is_not_asked_again() -> None:
    with script(400) as server, pytest.raises(Invalid, match="not now"):
        answered(server)
    assert server.asked == 1


def test_what_nobody_wants_any_more_is_not_asked_again() -> None:
    with script(503) as server, pytest.raises(Unavailable):
        answered(server, is_wanted=False)
    assert server.asked <= 1


def test_an_evaluation_gives_up_after_failures_one_after_another(database: Path) -> None:
    refusals = [400] * (MOST_FAILURES - 1)
    with script(*refusals, 200, *refusals, 400, 400) as server:
        with transaction() as session:
            row = ExternalModel(
                workspace_id=visitors.make_workspace(),
                name="Busy",
                url=server.endpoint.url,
                model="m",
                tried_at=utcnow(),
            )
            session.add(row)
            session.flush()
        outside = Outside({"ref": f"external:{row.id}"}, lambda: True)
        told = [outside.answer(HI, 16) for _ in range(3 * MOST_FAILURES)]
    assert [one.text for one in told if one.text] == ["Hello."], "an answer between starts the count anew"
    assert server.asked == 2 * MOST_FAILURES
    assert "Not asked any more" in told[-1].problem
    assert told[0].problem.startswith("127.0.0.1")
