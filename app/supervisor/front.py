"""The one address that people open: passes each request to `web`, or to `stream` where answers stay open.

`python -m app.supervisor.front`. Watchers then never occupy the process that renders pages. Reading requests is in
`wire.py`; why this is not done in the web process, or on two ports, is in docs/decisions.
"""

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import uvloop

from app.core import logging as log_setup
from app.core.config import get_settings
from app.supervisor import wire

log = logging.getLogger(__name__)
_BROKEN = (wire.BadRequest, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)
CHUNK = 256 * 1024
CONNECT_PATIENCE_S = 40
# Pauses before a page that got no answer is asked for again. One restart can cost two: what it had accepted, and what
# still waited to be accepted. Bounded, so that a page whose making kills the process does not kill it for ever.
REPEAT_PAUSES_S = (0, 0, 0.2, 0.5, 1, 2)
HEAD_TIMEOUT_S = 30
IDLE_TIMEOUT_S = 75
BODY_TIMEOUT_S = 120
# Connections that have not asked anything yet, or nothing more. Beyond this the one that waited longest is let go, so
# that somebody who opens thousands and sends half a request on each takes neither memory nor places from others.
WAITING_LIMIT = 4096


def _refusal(broken: BaseException) -> bytes:
    if isinstance(broken, wire.BadRequest):
        return wire.plain_answer(400, str(broken))
    return wire.plain_answer(408, "The request's body did not come to its end in time.")


def goes_to_stream(request: wire.RequestHead) -> bool:
    """Live events, token streams and the programming interface; every other request is a page."""
    return request.path.endswith(("/events", "/stream")) or request.path.startswith("/v1/")


class ClientProtocol(asyncio.StreamReaderProtocol):
    """A stream protocol that tells at once when the client has gone, and closes then."""

    def __init__(self, front: "Front") -> None:
        reader = asyncio.StreamReader(limit=wire.HEAD_LIMIT)
        self.gone = asyncio.Event()
        super().__init__(reader, lambda r, w: front.serve(r, w, self.gone))

    def eof_received(self) -> bool:
        super().eof_received()
        self.gone.set()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        super().connection_lost(exc)


@dataclass
class Upstream:
    """A process behind the front: a Unix socket path, or host:port."""

    address: str

    async def connect(self, patience_s: float) -> "Connection":
        """A connection; while the process restarts this waits, at most `patience_s`. Raises OSError."""
        end = asyncio.get_running_loop().time() + patience_s
        while True:
            try:
                return await self._connect()
            except OSError:
                if asyncio.get_running_loop().time() > end:
                    raise
                await asyncio.sleep(0.1)

    async def _connect(self) -> "Connection":
        loop = asyncio.get_running_loop()
        family: int
        place: Any
        if self.address.startswith("/"):
            family, place = socket.AF_UNIX, self.address
        else:
            host, _, port = self.address.rpartition(":")
            found = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
            family, place = found[0][0], found[0][4]
        up = socket.socket(family, socket.SOCK_STREAM)
        up.setblocking(False)
        try:
            await loop.sock_connect(up, place)
        except BaseException:
            up.close()
            raise
        return Connection(up)


class Connection:
    """A connection to a process behind. A plain socket: when the process answers and closes before it has read the
    whole body, asyncio's transports lose the answer together with the failed write; here reading goes on."""

    def __init__(self, up: socket.socket) -> None:
        self.socket, self.loop = up, asyncio.get_running_loop()
        self.rest = b""

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.socket, data)

    async def head(self) -> bytes:
        """Up to and with the first empty line. Raises NoAnswer when the connection ends before."""
        got = b""
        while b"\r\n\r\n" not in got:
            piece = await self.read()
            if not piece or len(got) > CHUNK:
                raise wire.NoAnswer
            got += piece
        head, mark, self.rest = got.partition(b"\r\n\r\n")
        return head + mark

    async def read(self) -> bytes:
        """What comes next, empty at the end."""
        if self.rest:
            piece, self.rest = self.rest, b""
            return piece
        try:
            return await self.loop.sock_recv(self.socket, CHUNK)
        except ConnectionError:
            return b""

    def end(self) -> None:
        """Stop both directions; whoever reads gets the end."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Only when nobody reads or writes any more."""
        self.socket.close()


@dataclass
class Front:
    """Serves client connections; each request gets a fresh connection to its process."""

    web: Upstream
    stream: Upstream
    trusted_proxies: list[str] = field(default_factory=list)
    is_https: bool = False
    is_draining: bool = False
    open_connections: int = 0
    waiting: dict[asyncio.StreamWriter, None] = field(default_factory=dict)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gone: asyncio.Event) -> None:
        """One client connection: requests one after another until either side closes."""
        self.open_connections += 1
        peer = writer.get_extra_info("peername")
        client = str(peer[0]) if isinstance(peer, tuple) else ""
        try:
            timeout = HEAD_TIMEOUT_S
            while not gone.is_set() and not self.is_draining:
                try:
                    async with asyncio.timeout(timeout), self._waits(writer):
                        raw = await reader.readuntil(b"\r\n\r\n")
                    request = wire.parse_request(raw)
                except asyncio.LimitOverrunError:
                    writer.write(wire.plain_answer(431, "The request's header is too long."))
                    break
                except wire.BadRequest as error:
                    writer.write(wire.plain_answer(400, str(error)))
                    break
                if not await self._exchange(request, client, reader, writer, gone):
                    break
                timeout = IDLE_TIMEOUT_S
            async with asyncio.timeout(5):
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            pass
        except Exception:
            if not writer.is_closing():  # else uvloop says so of one whose client has gone, as a RuntimeError
                log.exception("a connection ended on an unexpected error")
        finally:
            self.open_connections -= 1
            with contextlib.suppress(Exception):
                writer.close()

    @contextlib.asynccontextmanager
    async def _waits(self, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
        self.waiting[writer] = None
        if len(self.waiting) > WAITING_LIMIT:
            oldest = next(iter(self.waiting))
            del self.waiting[oldest]
            oldest.transport.abort()
        try:
            yield
        finally:
            self.waiting.pop(writer, None)

    async def _exchange(
        self,
        request: wire.RequestHead,
        client: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        gone: asyncio.Event,
    ) -> bool:
        """Pass one request and its answer on. True when the connection may serve another request."""
        upstream = self.stream if goes_to_stream(request) else self.web
        head = request.forwarded(client, self.trusted_proxies, self.is_https)
        for attempt, pause in enumerate(REPEAT_PAUSES_S, start=1):
            await asyncio.sleep(pause)
            try:
                up = await upstream.connect(0 if self.is_draining else CONNECT_PATIENCE_S)
            except OSError:
                break
            if request.expects_continue and attempt == 1:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = asyncio.ensure_future(self._send(head, request, reader, up))
            answer = asyncio.ensure_future(self._answer(request, up, writer, body))
            left = asyncio.ensure_future(gone.wait())
            broken: BaseException | None = None
            try:
                while not answer.done() and not left.done():
                    waiting = {answer, left} if body.done() else {answer, left, body}
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    if body.done() and isinstance(body.exception(), _BROKEN) and broken is None:
                        broken = body.exception()
                        up.end()  # it would wait for the rest for ever
                if not answer.done():
                    return False
                try:
                    return answer.result() and _is_whole(body)
                except wire.NoAnswer:
                    if broken is not None:
                        writer.write(_refusal(broken))
                        return False
                    if request.has_body or request.method not in wire.REPEATABLE:
                        break
            finally:
                for task in (answer, body, left):
                    task.cancel()
                await asyncio.gather(answer, body, left, return_exceptions=True)
                up.close()
        if not writer.is_closing():
            writer.write(wire.unavailable_answer(request))
        return False

    async def _send(self, head: bytes, request: wire.RequestHead, reader: asyncio.StreamReader, up: Connection) -> None:
        await up.send(head)
        async for piece in wire.body_pieces(request, reader, CHUNK, BODY_TIMEOUT_S):
            await up.send(piece)

    async def _answer(
        self, request: wire.RequestHead, up: Connection, writer: asyncio.StreamWriter, body: "asyncio.Future[None]"
    ) -> bool:
        """Copy the answer to the client. True when it came whole and says itself where it ends."""
        answer = wire.parse_answer(await up.head(), request)
        # Who is answered before the whole body has come must not send the next request behind the rest of it.
        may_stay = answer.is_delimited and request.keeps_alive and not self.is_draining and _is_whole(body)
        writer.write(answer.forwarded(may_stay))
        copied, tail = 0, b""
        while piece := await up.read():
            writer.write(piece)
            await writer.drain()
            copied += len(piece)
            tail = (tail + piece[-5:])[-5:]
        is_complete = answer.is_complete(copied, tail)
        if not is_complete and answer.is_events and tail.endswith(b"\n\n\r\n") and request.path.startswith("/v1/"):
            # Programs take a stream that just ends for a whole answer.
            writer.write(wire.LAST_EVENT)
        await writer.drain()
        return may_stay and is_complete


def _is_whole(body: "asyncio.Future[None]") -> bool:
    """Whether all that the client sends went on to the other side."""
    return body.done() and not body.cancelled() and body.exception() is None


async def run(front: Front, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; then take no more connections and let open requests end."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = await loop.create_server(lambda: ClientProtocol(front), sock=listening, backlog=2048)
    await stopping.wait()
    front.is_draining = True
    server.close()
    end = loop.time() + get_settings().stop_grace_s
    while front.open_connections and loop.time() < end:
        await asyncio.sleep(0.05)


def main() -> None:
    """Entry of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, help="an open listening socket")
    parser.add_argument("--listen", default="0.0.0.0:8000", help="host:port, where no --fd is given")
    parser.add_argument("--web", required=True, help="Unix socket or host:port")
    parser.add_argument("--stream", required=True, help="Unix socket or host:port")
    arguments = parser.parse_args()
    log_setup.configure()
    if arguments.fd is not None:
        listening = socket.socket(fileno=arguments.fd)
    else:
        host, _, port = arguments.listen.rpartition(":")
        listening = socket.create_server((host, int(port)), reuse_port=False)
    settings = get_settings()
    front = Front(
        Upstream(arguments.web), Upstream(arguments.stream), settings.trusted_proxies, is_https=settings.is_https
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(front, listening))


if __name__ == "__main__":
    main()
