"""Addresses, sites, the hub, storage and typed rows, against servers on this machine; what may not be reached."""

import hashlib
import http.server
import ipaddress
import json
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from sqlalchemy import select

from app.core import addresses, config, storage
from app.core.db import reading, transaction
from app.core.errors import Conflict, Forbidden, Invalid, NotFound
from app.datasets import service as files
from app.datasets.bringing import service, typed, website
from app.datasets.models import RemoteSource, SourceFile
from worker.tasks import datasets as tasks

COMMIT = "d" * 40
CSV = b"question,answer\n" + b"".join(b"what is %d?,it is %d\n" % (i, i) for i in range(40))
Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Server:
    """What it answers, what it was asked, and after how many bytes it breaks off."""

    url: str = ""
    pages: dict[str, Answer] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    break_after: int | None = None
    special: Callable[[str, dict[str, str]], Answer | None] = lambda path, headers: None

    def put(self, path: str, body: bytes | str, kind: str = "text/html", status: int = 200, **headers: str) -> None:
        body = body.encode() if isinstance(body, str) else body
        self.pages[path] = (status, {"content-type": kind, **headers}, body)


@pytest.fixture
def server(place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, with_body: bool) -> None:
            wanted = self.headers.get("range", "")
            state.asked.append((self.path, wanted))
            found = state.special(self.path, dict(self.headers)) or state.pages.get(urlsplit(self.path).path)
            status, headers, body = found or (404, {"content-type": "text/plain"}, b"nothing")
            if status == 200 and wanted.startswith("bytes="):
                first, _, last = wanted[6:].partition("-")
                whole, body = len(body), body[int(first) : int(last) + 1 if last else None]
                status, headers = (
                    206,
                    headers | {"content-range": f"bytes {first}-{int(first) + len(body) - 1}/{whole}"},
                )
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                limit = state.break_after
                self.wfile.write(body if limit is None else body[:limit])
                if limit is not None and len(body) > limit:
                    self.wfile.flush()
                    self.close_connection = True

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{listening.server_port}"
    monkeypatch.setenv("GPT_BUILDER_FETCH_NETWORKS", '["127.0.0.1/32"]')
    monkeypatch.setenv("GPT_BUILDER_FETCH_DELAY_S", "0")
    monkeypatch.setenv("GPT_BUILDER_HUB_ENDPOINT", state.url)
    config.get_settings.cache_clear()
    yield state
    listening.shutdown()


def bring(place, begin: Callable, **values) -> RemoteSource:
    with transaction() as session:
        source = begin(session, place.ada, project_id=place.project_id, **values)
    return run(source.id)


def run(source_id: str) -> RemoteSource:
    tasks.bring(source_id)
    with reading() as session:
        return session.get_one(RemoteSource, source_id)


def files_of(place) -> list[SourceFile]:
    with reading() as session:
        return list(session.scalars(select(SourceFile).where(SourceFile.project_id == place.project_id)))


def test_an_address_becomes_a_file_with_its_ledger(place, server):
    server.put("/a/rows.csv", CSV, "text/csv")
    server.put("/go", b"", status=302, location="/a/rows.csv")
    source = bring(
        place, service.bring_web, address=f"{server.url}/go", licence="CC BY 4.0", consent="the shop, by letter"
    )
    assert (source.state, source.error) == ("succeeded", "")
    (file,) = files_of(place)
    assert (file.filename, file.origin, file.licence, file.consent) == (
        "rows.csv", "web", "CC BY 4.0", "the shop, by letter",
    )  # fmt: skip
    assert (file.origin_url, file.size_bytes) == (f"{server.url}/a/rows.csv", len(CSV))
    assert file.obtained_on is not None
    tasks.import_file(file.id)
    with reading() as session:
        assert session.get_one(SourceFile, file.id).rows == 40
    assert not service.folder_of(source).joinpath("body.part").exists()


def test_a_broken_fetch_goes_on_where_it_stopped(place, server):
    server.put("/rows.csv", CSV * 2000, "text/csv", etag='"one"')
    server.break_after = 700_000
    source = bring(place, service.bring_web, address=f"{server.url}/rows.csv")
    assert source.state == "failed"
    assert "What arrived is kept" in source.error
    server.break_after = None
    with transaction() as session:
        service.retry(session, place.ada, source.id)
    assert run(source.id).state == "succeeded"
    assert server.asked[-1][1].startswith("bytes="), "only the rest was asked for"
    assert int(server.asked[-1][1][6:-1]) > 0
    assert files_of(place)[0].sha256 == hashlib.sha256(CSV * 2000).hexdigest()


@pytest.mark.parametrize(
    "address",
    [
        "http://127.1/", "http://0x7f000001/", "http://2130706433/", "http://[::ffff:127.0.0.1]/", "http://[::1]/",
        "http://169.254.169.254/latest/meta-data", "http://100.64.0.1/", "http://10.0.0.1/", "http://192.168.1.1/",
        "http://0.0.0.0/", "http://[fe80::1]/", "http://[fd00::1]/", "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/", "http://localhost/",
    ],
)  # fmt: skip
def test_private_addresses_are_refused_when_connecting(place, address):
    source = bring(place, service.bring_web, address=address)
    assert source.state == "failed"
    assert "inside a private network" in source.error


def test_a_hop_to_a_private_address_is_refused(place, server):
    server.put("/hop", b"", status=302, location="http://127.0.0.2:1/secret")
    server.put("/loop", b"", status=302, location="/loop")
    assert "inside a private network" in bring(place, service.bring_web, address=f"{server.url}/hop").error
    assert "without end" in bring(place, service.bring_web, address=f"{server.url}/loop").error


def test_a_name_is_connected_to_where_it_was_checked(place, server, monkeypatch):
    """DNS rebinding: the second answer of the name server is never asked for."""
    answers = iter(["127.0.0.1", "127.0.0.2", "127.0.0.2"])
    port = urlsplit(server.url).port
    real, asked = socket.getaddrinfo, []

    def rebinding(host, *more, **named):
        if host != "rebind.example":
            return real(host, *more, **named)
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    server.put("/rows.csv", CSV, "text/csv")
    source = bring(place, service.bring_web, address=f"http://rebind.example:{port}/rows.csv")
    assert (source.state, len(asked)) == ("succeeded", 1)
    refused = bring(place, service.bring_web, address=f"http://rebind.example:{port}/rows.csv")
    assert "inside a private network" in refused.error


def test_public_and_other_addresses_are_told_apart(database):
    for text, is_public in {
        "8.8.8.8": True, "2606:4700::1111": True, "127.0.0.1": False, "100.127.255.255": False, "198.18.0.1": False,
        "224.0.0.1": False, "255.255.255.255": False, "::ffff:10.0.0.1": False, "2001:db8::1": False,
    }.items():  # fmt: skip
        assert addresses.is_allowed(ipaddress.ip_address(text)) is is_public, text


def test_what_is_no_text_too_big_or_no_address_is_refused(place, server, monkeypatch):
    server.put("/photo", b"\x89PNG", "image/png")
    assert "no text" in bring(place, service.bring_web, address=f"{server.url}/photo").error
    server.put("/big.csv", bytes(5000), "text/csv")
    monkeypatch.setenv("GPT_BUILDER_UPLOAD_LIMIT_BYTES", "4000")
    config.get_settings.cache_clear()
    assert "over the limit" in bring(place, service.bring_web, address=f"{server.url}/big.csv").error
    for wrong in ("", "ftp://example.org/a", "file:///etc/passwd", "https://me:secret@example.org/", "https://"):
        with pytest.raises(Invalid):
            bring(place, service.bring_web, address=wrong)


def a_site(server: Server) -> None:
    server.put("/robots.txt", "User-agent: *\nDisallow: /docs/secret\nSitemap: /docs/map.xml\n", "text/plain")
    server.put("/docs/map.xml", f"<urlset><url><loc>{server.url}/docs/listed</loc></url></urlset>", "text/xml")
    server.put(
        "/docs/", '<h1>Start</h1><a href="two#x">2</a><a href="secret">s</a><a href="/else">e</a><a href="gone">g</a>'
    )
    server.put(
        "/docs/two", "<p>Two</p><a href='/docs/'>back</a><a href='a.pdf'>pdf</a><a href='http://127.0.0.9/'>x</a>"
    )
    server.put("/docs/listed", "<p>Listed</p>")
    server.put("/docs/a.pdf", b"%PDF", "application/pdf")
    server.put("/else", "<p>outside</p>")
    server.put("/docs/secret", "<p>secret</p>")


def test_a_site_is_read_as_its_robots_allow(place, server):
    a_site(server)
    source = bring(place, service.bring_web, address=f"{server.url}/docs/", is_site=True)
    assert (source.state, source.error) == ("succeeded", "")
    (file,) = files_of(place)
    with zipfile.ZipFile(files.original_path(file)) as archive:
        assert sorted(name.split("/", 1)[1] for name in archive.namelist()) == [
            "docs/index.html", "docs/listed/index.html", "docs/two/index.html",
        ]  # fmt: skip
    reasons = {urlsplit(address).path: reason for address, reason in source.details["skipped"]}
    assert reasons == {
        "/docs/secret": "robots.txt does not allow it", "/docs/gone": "the answer was 404",
        "/docs/a.pdf": "it is application/pdf, not a web page",
    }  # fmt: skip
    assert not {"/else", "/docs/secret"} & {path for path, _ in server.asked}
    assert file.filename == "127.0.0.1, 3 pages.zip"
    tasks.import_file(file.id)
    with reading() as session:
        assert session.get_one(SourceFile, file.id).rows == 4


def test_a_site_goes_on_behind_the_pages_that_were_kept(place, server):
    a_site(server)
    with transaction() as session:
        source = service.bring_web(
            session, place.ada, project_id=place.project_id, address=f"{server.url}/docs/", is_site=True
        )
    folder = service.folder_of(source)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with addresses.client() as client, pytest.raises(KeyboardInterrupt):
        website.Crawl(client, source.address, folder, 100).run(stop)
    server.asked.clear()
    assert run(source.id).state == "succeeded"
    asked = [path for path, _ in server.asked]
    assert "/docs/" not in asked, "it was kept"
    assert len(zipfile.ZipFile(files.original_path(files_of(place)[0])).namelist()) == 3


def test_a_page_limit_and_a_site_that_forbids_everything(place, server):
    a_site(server)
    bring(place, service.bring_web, address=f"{server.url}/docs/", is_site=True, page_limit=1)
    assert files_of(place)[0].filename == "127.0.0.1, 1 page.zip"
    server.put("/robots.txt", "User-agent: *\nDisallow: /\n", "text/plain")
    source = bring(place, service.bring_web, address=f"{server.url}/docs/", is_site=True)
    assert "robots.txt does not allow it" in source.error


def a_dataset(server: Server) -> None:
    data = {"data/train.csv": CSV, "extra.jsonl": b'{"q": 1}\n', "README.md": b"# x", "load.py": b"import os"}

    def answer(path: str, headers: dict[str, str]) -> Answer | None:
        path = unquote(path.split("?")[0])
        if path.startswith("/api/datasets/acme/unknown"):
            return 404, {"x-error-code": "RepoNotFound"}, b"{}"
        if path.startswith("/api/datasets/acme/faq"):
            siblings = [{"rfilename": name, "size": len(body)} for name, body in data.items()]
            sha256 = hashlib.sha256(CSV).hexdigest()
            siblings[0]["lfs"] = {"sha256": sha256, "size": len(CSV), "pointerSize": 130}
            card = {"license": "cc-by-4.0"}
            about = {"id": "acme/faq", "sha": COMMIT, "cardData": card, "tags": [], "siblings": siblings}
            return 200, {"content-type": "application/json"}, json.dumps(about).encode()
        name = path.removeprefix(f"/datasets/acme/faq/resolve/{COMMIT}/")
        headers = {"etag": '"x"', "x-repo-commit": COMMIT, "accept-ranges": "bytes"}
        return (200, headers, data[name]) if name in data else None

    server.special = answer


def test_a_dataset_of_the_hub(place, server):
    a_dataset(server)
    with transaction() as session:
        source = service.find_on_hub(session, place.ada, project_id=place.project_id, address="acme/faq")
    assert (source.state, source.licence, source.details["has_script"]) == ("found", "cc-by-4.0", True)
    assert [name for name, _size, _sha in source.details["files"]] == ["data/train.csv", "extra.jsonl"]
    with transaction() as session, pytest.raises(Invalid):
        service.confirm(session, place.ada, source.id, names=["load.py"])
    with transaction() as session:
        service.confirm(session, place.ada, source.id, names=["data/train.csv"])
    assert run(source.id).state == "succeeded"
    (file,) = files_of(place)
    assert (file.filename, file.licence, file.sha256) == (
        "faq-data__train.csv", "cc-by-4.0", hashlib.sha256(CSV).hexdigest(),
    )  # fmt: skip
    assert f"/blob/{COMMIT}/data/train.csv" in file.origin_url
    assert not any("load.py" in path for path, _ in server.asked)
    for wrong in ("../x", "a/b/c", "acme/unknown"):
        with transaction() as session, pytest.raises(Invalid):
            service.find_on_hub(session, place.ada, project_id=place.project_id, address=wrong)


def a_bucket(server: Server) -> list[str]:
    keys = {"faq/one.csv": CSV, "faq/two.jsonl": b'{"question": "a", "answer": "b"}\n'}
    signed: list[str] = []

    def answer(path: str, headers: dict[str, str]) -> Answer | None:
        signed.append(headers.get("Authorization", ""))
        url = urlsplit(path)
        key = unquote(url.path).removeprefix("/shop").lstrip("/")
        if key in keys:
            return 200, {"etag": '"x"', "content-type": "binary/octet-stream"}, keys[key]
        query = parse_qs(url.query)
        if "list-type" in query:
            prefix = query.get("prefix", [""])[0]
            rows = "".join(
                f"<Contents><Key>{k}</Key><Size>{len(v)}</Size><ETag>x</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                for k, v in keys.items()
                if k.startswith(prefix)
            )
            about = f"<Name>shop</Name><Prefix>{prefix}</Prefix><IsTruncated>false</IsTruncated>"
            body = f"<ListBucketResult>{about}{rows}</ListBucketResult>"
            return 200, {"content-type": "application/xml"}, body.encode()
        return None

    server.special = answer
    return signed


def test_files_of_a_storage_with_keys_that_are_kept_sealed(place, server):
    signed = a_bucket(server)
    values = {"address": "s3://shop/faq", "endpoint": server.url, "key": "AKIA123", "secret": "hush-hush"}
    with transaction() as session:
        source = service.bring_bucket(session, place.ada, project_id=place.project_id, **values)
    assert "hush" not in source.sealed_keys
    assert len(source.sealed_keys) > 40
    source = run(source.id)
    assert (source.state, source.error, source.sealed_keys) == ("succeeded", "", "")
    assert sorted((f.filename, f.origin_url) for f in files_of(place)) == [
        ("one.csv", "s3://shop/faq/one.csv"), ("two.jsonl", "s3://shop/faq/two.jsonl"),
    ]  # fmt: skip
    assert all("AKIA123" in line for line in signed)


def test_a_storage_inside_a_private_network_is_refused(place, server):
    for endpoint in ("http://127.0.0.2:9", "http://localhost:9"):
        source = bring(place, service.bring_bucket, address="s3://shop/faq", endpoint=endpoint)
        assert source.state == "failed", endpoint
        assert "private network" in source.error or "cannot be reached" in source.error


def test_typed_rows_can_be_changed(place):
    pairs = typed.pairs_of(["Who?", "", "Where?"], ["Me", "", "Here"])
    with transaction() as session:
        file = typed.add(session, place.ada, project_id=place.project_id, pairs=pairs, name="Mine")
    assert (file.filename, typed.rows_of(file)) == ("Mine.jsonl", [("Who?", "Me"), ("Where?", "Here")])
    tasks.import_file(file.id)
    with transaction() as session:
        typed.change(session, place.ada, file.id, [("Who?", "You")])
    tasks.import_file(file.id)
    with reading() as session:
        file = session.get_one(SourceFile, file.id)
    assert (file.rows, typed.rows_of(file)) == (1, [("Who?", "You")])
    for questions, answers in (([], []), (["Who?"], [""]), (["x" * 20_001], ["y"])):
        with pytest.raises(Invalid):
            typed.pairs_of(questions, answers)


def test_strangers_viewers_and_states(place):
    with transaction() as session:
        source = service.bring_web(session, place.ada, project_id=place.project_id, address="https://example.org/a")
    with transaction() as session:
        with pytest.raises(NotFound):
            service.get(session, place.bob, source.id)
        with pytest.raises(Forbidden):
            service.cancel(session, place.vera, source.id)
        with pytest.raises(Conflict):
            service.retry(session, place.ada, source.id)
        service.cancel(session, place.ada, source.id)
    with transaction() as session:
        service.remove(session, place.ada, source.id)
    assert not (storage.uploads_dir() / f"remote-{source.id}").exists()
    with reading() as session:
        assert service.listed(session, place.project_id) == []
