"""Servers that mean harm or are broken: hops into private networks, answers without an end, byte by byte, packed."""

import gzip
import socket
from urllib.parse import urlsplit

import pytest

from app.core import addresses
from app.core.db import transaction
from app.datasets.bringing import bucket, service, web
from tests.app.datasets.test_bringing import CSV, Answer, Server, a_bucket, a_dataset, bring, run
from tests.app.datasets.test_bringing import server as server  # the fixture

PRIVATE = "inside a private network"


def test_a_storage_that_sends_us_into_a_private_network(place, server: Server) -> None:
    """The host of the hop is a number, which is never asked of a resolver: only the connection itself can tell."""
    a_bucket(server)
    answer = server.special
    hop = "http://127.0.0.2:1/shop"
    server.special = lambda path, headers: (
        (302, {"location": hop}, b"") if "list-type" in path else answer(path, headers)
    )
    source = bring(place, service.bring_bucket, address="s3://shop/faq", endpoint=server.url)
    assert (source.state, PRIVATE in source.error) == ("failed", True), source.error
    server.special = lambda path, headers: (
        answer(path, headers) if "list-type" in path else (302, {"location": hop}, b"")
    )
    source = bring(place, service.bring_bucket, address="s3://shop/faq", endpoint=server.url)
    assert (source.state, PRIVATE in source.error) == ("failed", True), source.error


@pytest.mark.parametrize("endpoint", ["http://127.0.0.2:9", "http://127.2:9", "http://[::ffff:10.0.0.1]:9"])
def test_a_storage_named_by_a_number_in_any_spelling(place, server: Server, endpoint: str) -> None:
    source = bring(place, service.bring_bucket, address="s3://shop/faq", endpoint=endpoint)
    assert source.state == "failed"
    assert PRIVATE in source.error or "cannot be reached" in source.error
    assert not server.asked


def test_a_storage_whose_name_changes_its_address(place, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checked once and answered otherwise the next time: every connection goes to what was checked for it."""
    a_bucket(server)
    port, real = urlsplit(server.url).port, socket.getaddrinfo
    answers = iter(["127.0.0.1"])

    def rebinding(host, *more, **named):
        if host != "rebind.example":
            return real(host, *more, **named)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers, "127.0.0.2"), port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    first = bring(place, service.bring_bucket, address="s3://shop/faq", endpoint=f"http://rebind.example:{port}")
    later = bring(place, service.bring_bucket, address="s3://shop/faq", endpoint=f"http://rebind.example:{port}")
    assert first.state == "succeeded" or PRIVATE in first.error
    assert PRIVATE in later.error


def test_a_storage_that_sends_more_than_it_was_asked_for(
    place, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without parts of files there is no going on, and never a file of doubled beginnings."""
    a_bucket(server)
    monkeypatch.setattr(bucket, "_BLOCK", 100)
    answer = server.special

    def whole(path: str, headers: dict[str, str]) -> Answer | None:
        found = answer(path, headers)
        # Another status than 200: the server of these tests then sends the whole file, whatever part was asked for.
        return (203, *found[1:]) if found and "list-type" not in path else found

    server.special = whole
    source = bring(place, service.bring_bucket, address="s3://shop/faq", endpoint=server.url)
    assert (source.state, "What arrived is kept" in source.error) == ("failed", True), source.error
    assert (service.folder_of(source) / "0000").read_bytes() == CSV[:100]


def test_a_hub_that_sends_us_into_a_private_network(place, server: Server) -> None:
    a_dataset(server)
    answer = server.special

    def hop(path: str, headers: dict[str, str]):
        if "/resolve/" in path:
            return 302, {"location": f"http://127.0.0.2:{urlsplit(server.url).port}/secret"}, b""
        return answer(path, headers)

    server.special = hop
    with transaction() as session:
        source = service.find_on_hub(session, place.ada, project_id=place.project_id, address="acme/faq")
    with transaction() as session:
        service.confirm(session, place.ada, source.id, names=["data/train.csv"])
    source = run(source.id)
    assert (source.state, PRIVATE in source.error) == ("failed", True), source.error


def test_a_packed_answer_may_not_be_a_bomb(place, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "RATIO_FROM_BYTES", 1 << 20)
    server.put("/bomb.csv", gzip.compress(bytes(8 << 20)), "text/csv", **{"content-encoding": "gzip"})
    assert "a hundred times its size" in bring(place, service.bring_web, address=f"{server.url}/bomb.csv").error
    server.put("/twice.csv", gzip.compress(gzip.compress(CSV)), "text/csv", **{"content-encoding": "gzip, gzip"})
    assert "did not ask for" in bring(place, service.bring_web, address=f"{server.url}/twice.csv").error
    server.put("/rows.csv", gzip.compress(CSV), "text/csv", **{"content-encoding": "gzip"})
    assert bring(place, service.bring_web, address=f"{server.url}/rows.csv").state == "succeeded"


@pytest.fixture
def trickling(monkeypatch: pytest.MonkeyPatch):
    """The address of a server that sends what it is given, then one byte after the other for ever."""
    import threading

    listening = socket.create_server(("127.0.0.1", 0))
    begins = {"head": b"HTTP/1.1 200 OK\r\nx-long: ", "body": b"HTTP/1.1 200 OK\r\ncontent-type: text/csv\r\n\r\na,b\n"}
    stop = threading.Event()

    def answer(client: socket.socket) -> None:
        with client:
            try:
                kind = client.recv(4096).split(b" ")[1].strip(b"/").decode()
                client.sendall(begins.get(kind, b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\nshort"))
                while kind in begins and not stop.wait(0.02):
                    client.sendall(b"x")
            except OSError:
                return

    def serve() -> None:
        while not stop.is_set():
            try:
                client, _place = listening.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(client,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    monkeypatch.setattr(addresses, "PATIENCE_S", 0.2)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    stop.set()
    listening.close()


def test_answers_that_never_end_are_given_up(place, server: Server, trickling: str) -> None:
    """By the time waited, whatever is asked of the server: in its head, in its body, and for a length that is a lie."""
    assert "did not answer" in bring(place, service.bring_web, address=f"{trickling}/head").error
    assert "too slowly" in bring(place, service.bring_web, address=f"{trickling}/body").error
    assert "The connection broke" in bring(place, service.bring_web, address=f"{trickling}/short").error
