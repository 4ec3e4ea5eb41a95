"""A server between a client and the API: it hands everything on, and keeps what was asked and what came of it."""

import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import httpx
from said import URL

HELD_S = 60


@dataclass
class Asked:
    """One request: `body` as JSON where there is one; `is_left`: the client hung up before the end."""

    line: str
    status: int = 0
    body: dict[str, Any] = field(default_factory=dict)
    is_left: bool = False


class Recorder(ThreadingHTTPServer):
    """While `holds` is set, a stream stops behind its first piece until the client has hung up."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.asked: list[Asked] = []
        self.holds = threading.Event()
        self.root = f"{urlsplit(URL).scheme}://{urlsplit(URL).netloc}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def recorder() -> Iterator[Recorder]:
    server = Recorder()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()


class _Requests(BaseHTTPRequestHandler):
    server: Recorder

    def do_GET(self) -> None:
        self._hand_on()

    def do_POST(self) -> None:
        self._hand_on()

    def _hand_on(self) -> None:
        content = self.rfile.read(int(self.headers.get("content-length") or 0))
        asked = Asked(f"{self.command} {self.path}")
        self.server.asked.append(asked)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "content-length")}
        request = httpx.Request(self.command, self.server.root + self.path, headers=kept, content=content)
        if content:
            asked.body = httpx.Response(200, content=content).json()
        with httpx.Client(timeout=300) as http:
            answer = http.send(request, stream=True)
            asked.status = answer.status_code
            self.send_response(answer.status_code)
            self.send_header("content-type", answer.headers.get("content-type", ""))
            self.end_headers()
            try:
                for piece in answer.iter_bytes():
                    self.wfile.write(piece)
                    if self.server.holds.is_set() and "event-stream" in answer.headers["content-type"]:
                        asked.is_left = self._is_left()
                        break
            except OSError:
                asked.is_left = True
            answer.close()

    def _is_left(self) -> bool:
        """Wait until the client hangs up."""
        readable, _, _ = select.select([self.connection], [], [], HELD_S)
        return bool(readable) and self.connection.recv(1) == b""

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""
