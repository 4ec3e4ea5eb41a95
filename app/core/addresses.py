"""Which machines may be asked on behalf of a person: public ones, checked at the moment of connecting.

A name is resolved once, every address it has must be allowed, and the connection goes to that very address: a name
that changes its answer between two look-ups (DNS rebinding) gains nothing. Ranges: IANA special-purpose registries.
"""

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import httpcore
import httpx

from app.core.config import get_settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_CLOSED_4 = [
    ipaddress.IPv4Network(n)
    for n in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
    )
]  # fmt: skip
_OPEN_6 = ipaddress.IPv6Network("2000::/3")
# Documentation, Teredo and ORCHID, and 6to4, which can carry a private IPv4 address inside.
_CLOSED_6 = [ipaddress.IPv6Network(n) for n in ("2001:db8::/32", "2001::/23", "2002::/16", "3fff::/20")]
CONNECT_S, READ_S = 10.0, 30.0
# An answer that trickles in slower than this, once the first minute of waiting is over, is given up.
PATIENCE_S, LEAST_BYTES_PER_S = 60.0, 2000
POLL_S = 0.5
_CLOSED = "which is not a public address"
UNWANTED = "nobody waits for the answer any more"


class Forbidden(httpcore.ConnectError):
    """The address is not a public one."""


def is_whole(url: str) -> bool:
    """Whether it is a web address that can be asked at all: http or https, a host, a port that exists."""
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return found.scheme in ("http", "https") and bool(found.host) and 0 < (found.port or 80) < 2**16


def is_allowed(address: Address) -> bool:
    """Whether the address is public, or in a network that the operator opened."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in ipaddress.ip_network(n, strict=False) for n in get_settings().fetch_networks):
        return True
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _CLOSED_4)
    return address in _OPEN_6 and not any(address in network for network in _CLOSED_6)


def resolved(host: str, port: int) -> list[str]:
    """The addresses of a host, all of them allowed. Raises Forbidden, or ConnectError for an unknown name."""
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(f"{host} is not known") from error
    found = list(dict.fromkeys(str(answer[4][0]).split("%")[0] for answer in answers))
    for text in found:
        if not is_allowed(ipaddress.ip_address(text)):
            raise Forbidden(f"{host} is at {text}, {_CLOSED}")
    return found


def checked_socket(place: tuple[Any, ...]) -> socket.socket:
    """A socket for an entry of `socket.getaddrinfo`, for clients that resolve and connect by themselves.

    The last check before connecting: it also holds for redirects and for hosts that are written as numbers. Raises
    PermissionError.
    """
    family, kind, protocol, _name, (host, *_rest) = place
    if not is_allowed(ipaddress.ip_address(str(host).split("%")[0])):
        raise PermissionError(f"{host}, {_CLOSED}")
    found = socket.socket(family, kind, protocol)
    found.setblocking(False)
    return found


def is_refusal(error: BaseException | None) -> bool:
    """Whether an error comes from these rules, whatever the libraries between have made of it."""
    while error is not None:
        if isinstance(error, Forbidden) or _CLOSED in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Stream(httpcore.NetworkStream):
    """A checked connection; each kind below reads in its own way."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        self._stream = self._stream.start_tls(ssl_context, server_hostname, timeout)
        return self

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Patient(_Stream):
    """Gives a server up which sends its answer, head or body, byte by byte."""

    _waited_s, _seen = 0.0, 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        began = time.monotonic()
        found = super().read(max_bytes, timeout)
        self._waited_s += time.monotonic() - began
        self._seen += len(found)
        if found and self._waited_s > PATIENCE_S and self._seen < LEAST_BYTES_PER_S * self._waited_s:
            raise httpcore.ReadTimeout("it arrives too slowly")
        return found

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._waited_s, self._seen = 0.0, 0  # another question, another answer
        super().write(buffer, timeout)


class _Wanted(_Stream):
    """For answers that are made word by word: as slow as they like, for as long as somebody wants them."""

    def __init__(self, stream: httpcore.NetworkStream, is_wanted: Callable[[], bool]) -> None:
        super().__init__(stream)
        self._is_wanted = is_wanted

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        give_up_at = time.monotonic() + (timeout or READ_S)
        while self._is_wanted():
            try:
                return super().read(max_bytes, POLL_S)
            except httpcore.ReadTimeout:
                if time.monotonic() >= give_up_at:
                    raise
        raise httpcore.ReadError(UNWANTED)


class _Backend(httpcore.SyncBackend):
    """Connects to what was checked, and to nothing else."""

    def __init__(self, kind: Callable[[httpcore.NetworkStream], httpcore.NetworkStream]) -> None:
        self._kind = kind

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        last: Exception | None = None
        for address in resolved(host, port):
            try:
                return self._kind(super().connect_tcp(address, port, timeout, local_address, socket_options))
            except httpcore.ConnectError as error:
                last = error
        raise last or httpcore.ConnectError(host)

    def connect_unix_socket(self, *_arguments: Any, **_named: Any) -> httpcore.NetworkStream:
        raise Forbidden("sockets of this machine are not for fetching")


def client(is_wanted: Callable[[], bool] | None = None) -> httpx.Client:
    """An HTTP client without redirects, proxies and cookies that reaches public addresses only.

    A server that trickles is given up. With `is_wanted`, which is asked every half second, it may be slow: a model
    that is thinking.
    """
    kind = partial(_Wanted, is_wanted=is_wanted) if is_wanted else _Patient
    transport = httpx.HTTPTransport(trust_env=False)
    transport._pool = httpcore.ConnectionPool(
        ssl_context=httpx.create_ssl_context(trust_env=False), network_backend=_Backend(kind), max_connections=4
    )
    return httpx.Client(
        transport=transport,
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(READ_S, connect=CONNECT_S),
        headers={"user-agent": "GPT-Builder/0.1 (fetches at the request of a person)", "accept-encoding": "identity"},
    )
