"""HTTP/1.1 on the wire, as far as the front needs it: strict heads, bodies copied piece by piece (RFC 9112)."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

HEAD_LIMIT = 64 * 1024
LEAST_BYTES_PER_S = 512
_TRAILER_LIMIT = 32
REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS"})
_REQUEST_LINE = re.compile(rb"([A-Z]{1,20}) ([!-~]{1,16000}) HTTP/1\.([01])\Z")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n\x00]*)?\Z")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\x00]*?)[ \t]*\Z")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n\Z")
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"upgrade",
        b"expect",
    }
)
_FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-real-ip"})
_NEVER_DROPPED = frozenset({b"content-length", b"transfer-encoding", b"host", b"cookie", b"authorization"})
_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


class BadRequest(Exception):
    """The client's bytes are not a request that two parsers would read alike."""


class NoAnswer(Exception):
    """The process closed the connection before it began to answer."""


def _fields(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    fields = []
    for line in lines:
        found = _FIELD.match(line)
        if not found:
            raise BadRequest("A header line cannot be read.")
        fields.append((found[1].lower(), found[2]))
    return fields


def _values(fields: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for key, value in fields if key == name]


@dataclass(frozen=True)
class RequestHead:
    """A request's first line and fields; `length` of its body in bytes, None when it comes in chunks."""

    method: str
    target: bytes
    path: str
    is_http_1_0: bool
    fields: list[tuple[bytes, bytes]]
    length: int | None

    @property
    def has_body(self) -> bool:
        return self.length != 0

    @property
    def expects_continue(self) -> bool:
        return any(value.lower() == b"100-continue" for value in _values(self.fields, b"expect"))

    @property
    def keeps_alive(self) -> bool:
        """Whether the client wants the connection kept open."""
        words = b",".join(_values(self.fields, b"connection")).lower()
        return not self.is_http_1_0 and b"close" not in words

    def client(self, peer: str, trusted: list[str]) -> tuple[str, bytes | None]:
        """(who asks, the scheme they used): the connection's peer, or what a trusted proxy before us says."""
        if peer not in trusted:
            return peer, None
        hops = [hop.strip() for value in _values(self.fields, b"x-forwarded-for") for hop in value.split(b",")]
        outside = [hop for hop in hops if hop and hop.decode("latin-1") not in trusted]
        scheme = _values(self.fields, b"x-forwarded-proto")
        return (outside[-1].decode("latin-1") if outside else peer), (scheme[-1] if scheme else None)

    def forwarded(self, peer: str, trusted: list[str], is_https: bool) -> bytes:
        """The head for the process behind. Who the client is comes from us alone, in one field."""
        named = {word.strip() for value in _values(self.fields, b"connection") for word in value.lower().split(b",")}
        dropped = _HOP_BY_HOP | _FORWARDED | (named - _NEVER_DROPPED)
        who, scheme = self.client(peer, trusted)
        kept = [f for f in self.fields if f[0] not in dropped]
        kept.append((b"x-forwarded-for", who.encode("latin-1") or b"127.0.0.1"))
        kept.append((b"x-forwarded-proto", scheme if scheme in (b"http", b"https") else (b"http", b"https")[is_https]))
        kept.append((b"connection", b"close"))
        first = self.method.encode() + b" " + self.target + b" HTTP/1.1\r\n"
        return first + b"".join(name + b": " + value + b"\r\n" for name, value in kept) + b"\r\n"


def parse_request(raw: bytes) -> RequestHead:
    """Read a head up to its empty line. Raises BadRequest for whatever could be read in two ways."""
    first, *lines = raw.lstrip(b"\r\n")[:-4].split(b"\r\n")
    found = _REQUEST_LINE.match(first)
    if not found:
        raise BadRequest("The request line cannot be read.")
    fields = _fields(lines)
    lengths, codings = _values(fields, b"content-length"), _values(fields, b"transfer-encoding")
    length: int | None = 0
    if codings:
        if lengths or [coding.lower() for coding in codings] != [b"chunked"] or found[3] == b"0":
            raise BadRequest("The length of the request's body is not clear.")
        length = None
    elif lengths:
        if len(lengths) != 1 or not re.fullmatch(rb"\d{1,18}", lengths[0]):
            raise BadRequest("The length of the request's body is not clear.")
        length = int(lengths[0])
    if len(_values(fields, b"host")) != 1 and found[3] == b"1":
        raise BadRequest("A request names exactly one host.")
    try:
        path = urlsplit(found[2].decode("ascii")).path if not found[2].startswith(b"//") else "/"
    except ValueError as error:
        raise BadRequest("The address cannot be read.") from error
    return RequestHead(found[1].decode(), found[2], path, found[3] == b"0", fields, length)


@dataclass
class _Pace:
    """How long a body may take: `timeout_s` without a byte, and in all no slower than LEAST_BYTES_PER_S after that."""

    reader: asyncio.StreamReader
    timeout_s: float
    received: int = 0
    started: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    def left_s(self) -> float:
        spent = asyncio.get_running_loop().time() - self.started
        return min(self.timeout_s, self.timeout_s + self.received / LEAST_BYTES_PER_S - spent)

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(self.left_s()):
            piece = await self.reader.read(size)
        if not piece:
            raise asyncio.IncompleteReadError(b"", size)
        self.received += len(piece)
        return piece

    async def line(self) -> bytes:
        async with asyncio.timeout(self.left_s()):
            line = await self.reader.readuntil(b"\r\n")
        self.received += len(line)
        return line


async def body_pieces(
    request: RequestHead, reader: asyncio.StreamReader, size: int, timeout_s: float
) -> AsyncIterator[bytes]:
    """The request's body as it came, chunk marks included, without trailers.

    Raises BadRequest, TimeoutError (silence, or a trickle that only keeps the connection busy), IncompleteReadError.
    """
    pace = _Pace(reader, timeout_s)
    if request.length is not None:
        left = request.length
        while left:
            piece = await pace.read(min(left, size))
            left -= len(piece)
            yield piece
        return
    while True:
        line = await pace.line()
        found = _CHUNK_SIZE.match(line)
        if not found:
            raise BadRequest("A chunk of the request's body cannot be read.")
        yield line
        left = int(found[1], 16)
        if not left:
            break
        while left:
            piece = await pace.read(min(left, size))
            left -= len(piece)
            yield piece
        if await pace.line() != b"\r\n":
            raise BadRequest("A chunk of the request's body is longer than it says.")
        yield b"\r\n"
    for _ in range(_TRAILER_LIMIT):
        if await pace.line() == b"\r\n":
            yield b"\r\n"
            return
    raise BadRequest("The request's body has too many trailers.")


@dataclass(frozen=True)
class AnswerHead:
    """An answer's status line and fields, and how its end is known."""

    status_line: bytes
    fields: list[tuple[bytes, bytes]]
    length: int | None
    is_chunked: bool

    @property
    def is_delimited(self) -> bool:
        """Whether the client can tell the end without the connection closing."""
        return self.is_chunked or self.length is not None

    @property
    def is_events(self) -> bool:
        """Whether it is a stream of events in chunks, to which one may be added."""
        kind = b"".join(_values(self.fields, b"content-type"))
        return self.is_chunked and kind.startswith(b"text/event-stream")

    def is_complete(self, copied: int, tail: bytes) -> bool:
        """Whether all of it came: a process killed in the middle must not look like a whole answer."""
        return tail == b"0\r\n\r\n" if self.is_chunked else copied == self.length

    def forwarded(self, stays_open: bool) -> bytes:
        kept = [field for field in self.fields if field[0] not in _HOP_BY_HOP]
        kept.append((b"connection", b"keep-alive" if stays_open else b"close"))
        return self.status_line + b"\r\n" + b"".join(k + b": " + v + b"\r\n" for k, v in kept) + b"\r\n"


def parse_answer(raw: bytes, request: RequestHead) -> AnswerHead:
    """Read an answer's head. Raises NoAnswer where it is not HTTP."""
    first, *lines = raw[:-4].split(b"\r\n")
    found = _STATUS_LINE.match(first)
    if not found:
        raise NoAnswer
    fields = _fields(lines)
    status = int(found[1])
    lengths = _values(fields, b"content-length")
    is_chunked = bool(_values(fields, b"transfer-encoding"))
    length = int(lengths[0]) if lengths else None
    if request.method == "HEAD" or status in (204, 304):
        length, is_chunked = 0, False
    return AnswerHead(first, fields, length, is_chunked)


_CUT_SHORT = (
    b'data: {"error":{"message":"The service was restarted in the middle of this answer. Send the request again.",'
    b'"type":"server_error","param":null,"code":"restarting"}}\n\n'
)
LAST_EVENT = b"%x\r\n%s\r\n0\r\n\r\n" % (len(_CUT_SHORT), _CUT_SHORT)


def plain_answer(status: int, sentence: str) -> bytes:
    """A short answer of our own; the connection closes after it."""
    text = sentence.encode() + b"\n"
    return (
        b"HTTP/1.1 %d %s\r\ncontent-type: text/plain; charset=utf-8\r\nx-content-type-options: nosniff\r\n"
        b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (status, _REASONS[status], len(text), text)
    )


# What a page that is open says beside the button that was pressed.
_RESTARTING = "This part of GPT Builder is being restarted. Nothing is lost: try again in a few seconds."


def unavailable_answer(request: RequestHead) -> bytes:
    """What a person or a program reads while a process is being restarted."""
    if request.path.startswith("/v1/"):
        kind = b"application/json"
        text = (
            b'{"error":{"message":"The service is restarting. Try again in a few seconds.",'
            b'"type":"server_error","param":null,"code":"restarting"}}'
        )
    else:
        kind = b"text/html; charset=utf-8"
        text = (
            b'<!doctype html><html lang="en"><meta charset="utf-8"><title>One moment</title>'
            b"<h1>One moment</h1><p>This part of GPT Builder is being restarted. Nothing was lost. "
            b"Load the page again in a few seconds.</p></html>"
        )
    return (
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: %s\r\nretry-after: 3\r\ncache-control: no-store\r\n"
        b"x-error: %s\r\n"
        b"content-security-policy: default-src 'none'; base-uri 'none'; frame-ancestors 'none'\r\n"
        b"x-content-type-options: nosniff\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
        % (kind, quote(_RESTARTING).encode(), len(text), b"" if request.method == "HEAD" else text)
    )
