"""Notices of ended runs: real servers on this machine, opened by the operator; private addresses refused otherwise."""

import json
import socketserver
import threading
from collections.abc import Iterator
from datetime import timedelta
from email import message_from_string, policy
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from sqlalchemy import update

from app.core import config
from app.core.db import new_id, reading, transaction, utcnow
from app.core.errors import Invalid
from app.runs import notices, service
from app.runs.models import Notice, Run
from tests.factories import World, a_recipe, a_world
from tests.visitors import browser_of, make_person


class Inbox(BaseHTTPRequestHandler):
    """Keeps what it is sent; answers with the status that the test wants."""

    status = 200
    got: list[dict] = []

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def inbox() -> Iterator[str]:
    Inbox.status, Inbox.got = 200, []
    server = HTTPServer(("127.0.0.1", 0), Inbox)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook?key=secret"
    server.shutdown()
    server.server_close()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_BUILDER_FETCH_NETWORKS", '["127.0.0.0/8"]')
    config.get_settings.cache_clear()


@pytest.fixture
def world(database: object) -> World:
    with transaction() as session:
        return a_world(session)


def a_run(world: World) -> str:
    with transaction() as session:
        return service.start(
            session, world.actor, project_id=world.project_id, version_id=world.version_id, recipe=a_recipe(),
            client_request_id=new_id(), name="Warm",
        ).id  # fmt: skip


def ask(world: World, run_id: str, target: str, channel: str = "webhook") -> str:
    with transaction() as session:
        return notices.ask_for(session, world.actor, run_id, channel=channel, target=target).id


def end(run_id: str) -> None:
    with transaction() as session:
        run = session.get_one(Run, run_id)
        run.state, run.best_loss = "succeeded", 1.25


def seen(notice_id: str) -> Notice:
    with reading() as session:
        return session.get_one(Notice, notice_id)


def test_it_is_sent_once_when_the_run_has_ended(world: World, inbox: str, opened: None) -> None:
    run_id = a_run(world)
    notice_id = ask(world, run_id, inbox)
    assert ask(world, run_id, inbox) == notice_id  # a doubled click is one notice
    assert notices.deliver() == 0
    end(run_id)
    assert (notices.deliver(), notices.deliver()) == (1, 0)
    (got,) = Inbox.got
    assert (got["event"], got["id"], got["run"]["id"], got["run"]["state"]) == (
        "run.ended", notice_id, run_id, "succeeded",
    )  # fmt: skip
    assert got["text"] == "Run 1, “Warm”, is ready. Lowest validation loss: 1.25."
    assert seen(notice_id).state == "sent"


def test_a_server_that_refuses_is_tried_again_and_given_up(world: World, inbox: str, opened: None) -> None:
    run_id = a_run(world)
    notice_id = ask(world, run_id, inbox)
    end(run_id)
    Inbox.status = 500
    for tries in range(1, 5):
        assert notices.deliver() == 0
        assert seen(notice_id).tries == tries
        assert notices.deliver() == 0  # not before its time
        with transaction() as session:
            session.execute(update(Notice).values(next_try_at=utcnow() - timedelta(seconds=1)))
    assert (seen(notice_id).state, len(Inbox.got)) == ("failed", 4)
    assert "500" in seen(notice_id).error


def test_a_private_address_is_neither_taken_nor_reached(world: World, inbox: str) -> None:
    with pytest.raises(Invalid) as caught:
        notices.check_address(inbox)
    assert "private network" in caught.value.fields["target"]
    run_id = a_run(world)
    notice_id = ask(world, run_id, inbox)  # as if its name had been public a moment ago
    end(run_id)
    assert notices.deliver() == 0
    assert Inbox.got == []
    assert "could not be reached" in seen(notice_id).error


@pytest.mark.parametrize(
    "target",
    [
        "",
        "ftp://example.org",
        "example.org/x",
        "http://[::1",
        "https://",
        "http://①②⑦.⓪.⓪.①/",
        "http://\u202eexample.org/",
    ],
)
def test_what_is_no_web_address_is_refused(target: str) -> None:
    with pytest.raises(Invalid) as caught:
        notices.check_address(target)
    assert "https://" in caught.value.fields["target"]


def test_the_page_shows_the_host_and_hides_the_secret(app: object, world: World, inbox: str, opened: None) -> None:
    run_id = a_run(world)
    browser = browser_of(app, make_person(workspace_id=world.workspace_id))
    assert browser.post(f"/runs/{run_id}/notices", data={"channel": "webhook", "target": inbox}).status_code == 303
    text = browser.get(f"/runs/{run_id}").text
    assert "<strong>127.0.0.1</strong>" in text
    assert "key=secret" not in text
    with reading() as session:
        (notice,) = notices.of_run(session, session.get_one(Run, run_id))
    assert "secret" not in notice.target
    assert browser.post(f"/runs/{run_id}/notices", data={"channel": "webhook", "target": "x"}).status_code == 422
    browser.post(f"/runs/{run_id}/notices/{notice.id}/remove")
    assert "127.0.0.1</strong>" not in browser.get(f"/runs/{run_id}").text


class Mailbox(socketserver.StreamRequestHandler):
    """As much of SMTP as a client needs to hand over a message."""

    got: list[str] = []

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        is_message = False
        for line in self.rfile:
            text = line.decode().rstrip("\r\n")
            if is_message and text != ".":
                self.got.append(text)
                continue
            is_message = text.upper() == "DATA"
            self.wfile.write(
                b"354 go\r\n" if is_message else b"221 bye\r\n" if text.upper() == "QUIT" else b"250 ok\r\n"
            )


def test_an_e_mail_goes_to_the_asker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = a_run(world)
    with pytest.raises(Invalid):
        ask(world, run_id, "", "email")
    Mailbox.got = []
    with socketserver.TCPServer(("127.0.0.1", 0), Mailbox) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GPT_BUILDER_SMTP_URL", f"smtp://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("GPT_BUILDER_MAIL_FROM", "gpt@example.org")
        config.get_settings.cache_clear()
        # One that can never be sent, since the key file was exchanged, holds up no other.
        lost = ask(world, run_id, "https://example.org/hook")
        notice_id = ask(world, run_id, "somebody.else@example.org", "email")
        with transaction() as session:
            session.get_one(Notice, lost).target = "sealed with another key"
            session.get_one(Run, run_id).name = "v1. Warm\nBcc: all@example.org"
        end(run_id)
        assert notices.deliver() == 1
        server.shutdown()
    assert "log says why" in seen(lost).error
    letter = message_from_string("\n".join(Mailbox.got), policy=policy.default)
    assert letter["subject"] == "Run 1, “v1. Warm Bcc: all@example.org”, is ready"
    assert letter["bcc"] is None
    assert f"To: {world.actor.email}" in Mailbox.got
    assert seen(notice_id).shown == world.actor.email
