"""The front: every request reaches the right process, whole; nothing that two parsers read differently gets through."""

import asyncio
import contextlib
import json
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from app.supervisor import front, wire
from tests.conftest import wait_for

SMUGGLED = [
    b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5, 5\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding : chunked\r\n\r\n",
    b"POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\n folded: line\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\nx-forwarded-for: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nx: \x00\r\n\r\n",
    b"GET  / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"get / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET / HTTP/2.0\r\nhost: a\r\n\r\n",
]


@pytest.mark.parametrize("raw", SMUGGLED)
def test_ambiguous_heads_are_refused(raw: bytes) -> None:
    with pytest.raises(wire.BadRequest):
        wire.parse_request(raw)


def test_clients_cannot_say_who_they_are() -> None:
    raw = b"GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 6.6.6.6\r\nx-forwarded-proto: https\r\n"
    raw += b"forwarded: for=6.6.6.6\r\n\r\n"
    head = wire.parse_request(raw).forwarded("10.0.0.9", [], is_https=False)
    assert b"6.6.6.6" not in head
    assert b"x-forwarded-for: 10.0.0.9\r\nx-forwarded-proto: http\r\n" in head


def test_a_trusted_proxy_is_believed_about_the_last_hop_only() -> None:
    raw = b"GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 6.6.6.6, 8.8.4.4\r\nx-forwarded-proto: https\r\n\r\n"
    head = wire.parse_request(raw).forwarded("10.0.0.1", ["10.0.0.1"], is_https=False)
    assert b"x-forwarded-for: 8.8.4.4\r\nx-forwarded-proto: https\r\n" in head


def test_connection_cannot_strip_what_decides() -> None:
    raw = b"POST / HTTP/1.1\r\nhost: a\r\ncookie: s=1\r\nx-a: 1\r\ncontent-length: 2\r\n"
    raw += b"connection: cookie, content-length, x-a\r\n\r\n"
    head = wire.parse_request(raw).forwarded("c", [], is_https=False)
    assert b"cookie: s=1\r\n" in head
    assert b"content-length: 2\r\n" in head
    assert b"x-a" not in head


@pytest.mark.parametrize(
    ("target", "is_stream"),
    [
        (b"/runs/abc/events", True),
        (b"/runs/abc/events?after=1-0", True),
        (b"/v1/chat/completions", True),
        (b"/runs/abc", False),
        (b"/projects?next=/events", False),
        (b"/eventsful", False),
    ],
)
def test_what_goes_to_stream(target: bytes, is_stream: bool) -> None:
    request = wire.parse_request(b"GET " + target + b" HTTP/1.1\r\nhost: a\r\n\r\n")
    assert front.goes_to_stream(request) is is_stream


def upstream_app(name: str, seen: dict[str, Any]) -> FastAPI:
    app = FastAPI()

    @app.api_route("/echo", methods=["GET", "HEAD", "POST"])
    async def echo(request: Request) -> dict[str, Any]:
        body = await request.body()
        client = request.client.host if request.client else ""
        return {"name": name, "client": client, "length": len(body), "sum": sum(body), "query": request.url.query}

    @app.post("/refuse", status_code=413)
    async def refuse() -> dict[str, str]:
        return {"detail": "too large"}

    @app.get("/long/events")
    async def events() -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            seen["open"] = seen.get("open", 0) + 1
            try:
                for number in range(10_000):
                    yield f"id: {number}\ndata: {name}\n\n"
                    await asyncio.sleep(0.01)
            finally:
                seen["open"] -= 1

        return StreamingResponse(lines(), media_type="text/event-stream")

    @app.get("/cut")
    async def cut() -> StreamingResponse:
        async def half() -> AsyncIterator[bytes]:
            yield b"half of it"
            raise RuntimeError("the process dies in the middle")

        return StreamingResponse(half(), headers={"content-length": "1000"})

    @app.get("/v1/cut")
    async def cut_stream() -> StreamingResponse:
        async def half() -> AsyncIterator[bytes]:
            yield b'data: {"half": "of it"}\n\n'
            raise RuntimeError("the process dies in the middle")

        return StreamingResponse(half(), media_type="text/event-stream")

    return app


class Running:
    """A front with two upstream processes' worth of uvicorn, in threads."""

    def __init__(self, folder: Path) -> None:
        self.seen: dict[str, Any] = {}
        self.servers = []
        for name in ("web", "stream"):
            config = uvicorn.Config(
                upstream_app(name, self.seen),
                uds=str(folder / f"{name}.sock"),
                log_level="critical",
                forwarded_allow_ips="*",
                timeout_graceful_shutdown=1,
            )
            server = uvicorn.Server(config)
            threading.Thread(target=server.run, daemon=True).start()
            self.servers.append(server)
        wait_for(lambda: all(server.started for server in self.servers), "the upstream servers run")
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self.loop = asyncio.new_event_loop()
        served = front.Front(front.Upstream(str(folder / "web.sock")), front.Upstream(str(folder / "stream.sock")))
        self.front = served

        async def start() -> None:
            await self.loop.create_server(lambda: front.ClientProtocol(served), sock=listening)

        self.loop.run_until_complete(start())
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.port}"

    def raw(self, data: bytes, until: bytes, timeout_s: float = 10) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as connection:
            connection.sendall(data)
            got = b""
            while until not in got and (piece := connection.recv(65536)):
                got += piece
        return got


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One front for this file."""
    with tempfile.TemporaryDirectory(prefix="gptb-") as folder:
        stack = Running(Path(folder))
        yield stack
        for server in stack.servers:
            server.should_exit = True
        stack.loop.call_soon_threadsafe(stack.loop.stop)


def test_one_connection_serves_pages_and_streams(running: Running) -> None:
    with httpx.Client(base_url=running.url) as client:
        first = client.get("/echo?a=1").json()
        assert (first["name"], first["client"], first["query"]) == ("web", "127.0.0.1", "a=1")
        with client.stream("GET", "/long/events") as answer:
            lines = answer.iter_lines()
            assert [next(lines), next(lines)] == ["id: 0", "data: stream"]
        assert client.get("/echo").json()["name"] == "web"


def test_a_client_that_leaves_ends_the_stream_behind(running: Running) -> None:
    wait_for(lambda: not running.seen.get("open"), "earlier streams ended")
    with httpx.stream("GET", f"{running.url}/long/events") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "id: 0"
        assert running.seen["open"] == 1
    wait_for(lambda: not running.seen["open"], "the process behind noticed")


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_large_bodies_arrive_whole(running: Running, is_chunked: bool) -> None:
    body = bytes(range(256)) * 16_384

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    answer = httpx.post(f"{running.url}/echo", content=pieces() if is_chunked else body, timeout=30).json()
    assert (answer["length"], answer["sum"]) == (len(body), sum(body))


def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    one = b"POST /echo?n=%d HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\r\nabc"
    last = b"GET /echo?n=9 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    got = running.raw(one % 1 + one % 2 + last, b"n=9").decode()
    assert [got.index(f'"query":"n={number}"') for number in (1, 2, 9)] == sorted(
        got.index(f'"query":"n={number}"') for number in (1, 2, 9)
    )
    assert got.count("HTTP/1.1 200") == 3


def test_head_has_no_body_and_keeps_the_connection(running: Running) -> None:
    both = b"HEAD /echo HTTP/1.1\r\nhost: localhost\r\n\r\n"
    both += b"GET /echo?n=2 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    got = running.raw(both, b"n=2")
    assert got.count(b"HTTP/1.1 200") == 2
    assert got.count(b'"name"') == 1


def test_expect_continue_is_answered(running: Running) -> None:
    head = b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n"
    head += b"expect: 100-continue\r\nconnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(head)
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc")
        assert b'"length":3' in connection.recv(65536) + connection.recv(65536)


def test_a_refusal_before_the_body_ends_reaches_the_client(running: Running) -> None:
    head = b"POST /refuse HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000000\r\n\r\n"
    got = running.raw(head + b"x" * 10_000, b"too large")
    assert b" 413 " in got
    assert b"too large" in got
    assert b"connection: close" in got, "the next request would come behind the rest of this body"


def test_half_an_answer_never_looks_whole(running: Running) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{running.url}/cut", timeout=10)


def test_a_program_is_told_that_its_stream_was_cut(running: Running) -> None:
    _, last, rest = httpx.get(f"{running.url}/v1/cut", timeout=10).text.split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "restarting"
    assert rest == ""


def test_nonsense_is_refused_with_a_sentence(running: Running) -> None:
    got = running.raw(b"NONSENSE\r\n\r\n", b"read.")
    assert got.startswith(b"HTTP/1.1 400 Bad Request")
    assert b"The request line cannot be read." in got
    got = running.raw(b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 70_000, b"too long")
    assert got.startswith(b"HTTP/1.1 431 ")


CHUNKED = b"POST /echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "body",
    [b"3\r\nabcXX0\r\n\r\n", b"3\r\nabc\n0\r\n\r\n", b"-1\r\n", b"3\r\nabc\r\n0\r\n" + b"x: y\r\n" * 40],
    ids=["longer", "bare line feed", "negative", "trailers without end"],
)
def test_chunks_that_do_not_keep_their_word_are_refused(running: Running, body: bytes) -> None:
    got = running.raw(CHUNKED + body + b"GET /echo?n=smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n", b"smuggled", 5)
    assert got.startswith(b"HTTP/1.1 400 ")
    assert b"smuggled" not in got


def test_trailers_do_not_disturb_the_next_request(running: Running) -> None:
    last = b"GET /echo?n=2 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    got = running.raw(CHUNKED + b"3\r\nabc\r\n0\r\nx-evil: 1\r\n\r\n" + last, b"n=2")
    assert got.count(b"HTTP/1.1 200") == 2


def test_a_body_that_stops_coming_or_trickles_is_given_up(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a few bytes keep a connection of the process behind open for ever."""
    monkeypatch.setattr(front, "BODY_TIMEOUT_S", 0.3)
    head = b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n"
    assert running.raw(head + b"abc", b"in time").startswith(b"HTTP/1.1 408 ")
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(head)
        for _ in range(40):
            try:
                connection.sendall(b"x")
            except OSError:
                break
            time.sleep(0.05)
        else:
            pytest.fail("a byte now and then was enough")


def test_thousands_that_only_wait_do_not_keep_others_out(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "WAITING_LIMIT", 5)
    half = [socket.create_connection(("127.0.0.1", running.port), timeout=10) for _ in range(12)]
    try:
        for connection in half:
            connection.sendall(b"GET /echo HTTP/1.1\r\nx: ")
        wait_for(lambda: len(running.front.waiting) == 5, "the oldest were let go")
        with contextlib.suppress(ConnectionResetError):
            assert half[0].recv(10) == b""
        assert httpx.get(f"{running.url}/echo").status_code == 200
    finally:
        for connection in half:
            connection.close()


def test_no_connection_is_left_over(running: Running) -> None:
    wait_for(lambda: running.front.open_connections == 0, "every connection ended")


def test_while_a_process_is_away_the_client_is_told_to_come_back(tmp_path: Path) -> None:
    request = wire.parse_request(b"GET /projects HTTP/1.1\r\nhost: a\r\n\r\n")
    answer = wire.unavailable_answer(request)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 3" in answer
    assert b"x-error: This%20part%20of%20GPT%20Builder%20is%20being%20restarted." in answer
    started = time.monotonic()

    async def connect() -> None:
        await front.Upstream(str(tmp_path / "nobody.sock")).connect(0.3)

    with pytest.raises(FileNotFoundError):
        asyncio.run(connect())
    assert 0.2 < time.monotonic() - started < 3
