"""Resumable uploads over the wire: offsets, cuts, limits, strangers; on a real server where a connection breaks."""

import base64
import hashlib
import http.client
import os
import socket
import tempfile
import threading
from pathlib import Path

import pytest
import uvicorn

from app.core import config
from app.core.db import reading, transaction, utcnow
from app.core.errors import DiskFull
from app.datasets import spool, uploads
from app.datasets.models import SourceFile, Upload
from tests.conftest import wait_for
from tests.visitors import browser_of, make_person, make_project

TUS = {"Tus-Resumable": "1.0.0"}
BODY = {**TUS, "Content-Type": "application/offset+octet-stream"}


@pytest.fixture
def ana(app):
    person = make_person()
    browser = browser_of(app, person)
    browser.person, browser.project = person, make_project(person.workspace_id)
    return browser


def begin(browser, size: int, name: str = "rows.csv") -> str:
    metadata = f"filename {base64.b64encode(name.encode()).decode()}"
    headers = {**TUS, "Upload-Length": str(size), "Upload-Metadata": metadata}
    answer = browser.post(f"/uploads?project_id={browser.project}", headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


def send(browser, url: str, offset: int, body: bytes):
    return browser.patch(url, headers={**BODY, "Upload-Offset": str(offset)}, content=body)


def offset_of(browser, url: str) -> int:
    answer = browser.head(url, headers=TUS)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    return int(answer.headers["upload-offset"])


def row(model, row_id: str):
    with reading() as session:
        return session.get(model, row_id)


def test_in_pieces_and_hashed_on_the_way(ana):
    content = os.urandom(3_000_000)
    url = begin(ana, len(content))
    for start in range(0, len(content), 1_000_000):
        assert offset_of(ana, url) == start
        answer = send(ana, url, start, content[start : start + 1_000_000])
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(start + 1_000_000))
    upload = row(Upload, url.rsplit("/", 1)[1])
    file = row(SourceFile, upload.file_id)
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert (file.filename, file.size_bytes, file.state) == ("rows.csv", 3_000_000, "queued")
    assert not uploads.spool_path(upload.id).exists()


def test_the_hash_is_right_after_a_restart_in_between(ana):
    content = os.urandom(200_000)
    url = begin(ana, len(content))
    send(ana, url, 0, content[:70_000])
    spool._hashes.clear()
    send(ana, url, 70_000, content[70_000:])
    assert row(SourceFile, row(Upload, url.rsplit("/", 1)[1]).file_id).sha256 == hashlib.sha256(content).hexdigest()


def test_strict_offsets_and_types(ana):
    url = begin(ana, 10)
    assert send(ana, url, 0, b"12345").status_code == 204
    assert send(ana, url, 0, b"12345").status_code == 409
    assert send(ana, url, 7, b"12345").status_code == 409
    assert send(ana, url, 5, b"123456789").status_code == 413
    assert offset_of(ana, url) == 5
    assert ana.patch(url, headers={**TUS, "Upload-Offset": "5"}, content=b"x").status_code == 415
    assert ana.head(url).status_code == 412
    assert ana.patch(url, headers={**BODY, "Upload-Offset": "-1"}, content=b"x").status_code == 400
    assert send(ana, url, 5, b"67890").status_code == 204
    assert send(ana, url, 10, b"").status_code == 409, "complete"


def test_limits_are_said_before_a_byte_is_sent(ana, monkeypatch):
    monkeypatch.setenv("GPT_BUILDER_UPLOAD_LIMIT_BYTES", "1000")
    config.get_settings.cache_clear()
    headers = {**TUS, "Upload-Length": "1001"}
    assert ana.post(f"/uploads?project_id={ana.project}", headers=headers).status_code == 413
    monkeypatch.setenv("GPT_BUILDER_UPLOAD_LIMIT_BYTES", str(10**18))
    config.get_settings.cache_clear()
    headers = {**TUS, "Upload-Length": str(10**16 - 1)}
    assert ana.post(f"/uploads?project_id={ana.project}", headers=headers).status_code == 507
    for wrong in ("", "-5", "1e3", "NaN", "9" * 40):
        answer = ana.post(f"/uploads?project_id={ana.project}", headers={**TUS, "Upload-Length": wrong})
        assert answer.status_code == 400


def test_a_full_disk_keeps_what_arrived(ana, monkeypatch):
    url = begin(ana, 3 << 20)
    assert send(ana, url, 0, bytes(1 << 20)).status_code == 204
    real = os.write

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool.os, "write", full)
    answer = send(ana, url, 1 << 20, bytes(1 << 20))
    assert answer.status_code == DiskFull.status == 507
    monkeypatch.setattr(spool.os, "write", real)
    assert offset_of(ana, url) == 1 << 20
    assert send(ana, url, 1 << 20, bytes(2 << 20)).status_code == 204


def test_only_its_owner_reaches_an_upload(ana, app):
    url = begin(ana, 10)
    colleague = browser_of(app, make_person("Ben", "editor", ana.person.workspace_id))
    stranger = browser_of(app, make_person("Zoe"))
    for other in (colleague, stranger):
        assert other.head(url, headers=TUS).status_code == 404
        assert send(other, url, 0, b"x").status_code == 404
        assert other.delete(url, headers=TUS).status_code == 404
    assert ana.delete(url, headers=TUS).status_code == 204
    assert ana.head(url, headers=TUS).status_code == 404
    assert not uploads.spool_path(url.rsplit("/", 1)[1]).exists()


def test_died_between_last_byte_and_file(ana):
    """The client is told that all is there, so asking for the offset must make the file."""
    url = begin(ana, 5)
    upload_id = url.rsplit("/", 1)[1]
    uploads.spool_path(upload_id).write_bytes(b"a,b\n1")
    with transaction() as session:
        uploads.advance(session, upload_id, 5)
    assert offset_of(ana, url) == 5
    assert row(Upload, upload_id).file_id is not None


def test_a_changed_file_is_not_joined_to_the_old_half(ana):
    metadata = ",".join(
        f"{key} {base64.b64encode(value.encode()).decode()}"
        for key, value in {"filename": "rows.csv", "fingerprint": "1-abc"}.items()
    )
    headers = {**TUS, "Upload-Length": "6", "Upload-Metadata": metadata}
    url = ana.post(f"/uploads?project_id={ana.project}", headers=headers).headers["location"]
    same, other = {"Upload-Fingerprint": "1-abc"}, {"Upload-Fingerprint": "2-abc"}
    first = {**BODY, **same, "Upload-Offset": "0"}
    assert ana.patch(url, headers=first, content=b"a,b").status_code == 204
    assert ana.head(url, headers={**TUS, **other}).status_code == 422
    refused = ana.patch(url, headers={**BODY, **other, "Upload-Offset": "3"}, content=b"\n3,")
    assert refused.status_code == 422
    assert "has changed" in refused.text
    assert offset_of(ana, url) == 3, "a client that says nothing is not stopped"
    assert ana.patch(url, headers={**BODY, **same, "Upload-Offset": "3"}, content=b"\n1,").status_code == 204
    file = row(SourceFile, row(Upload, url.rsplit("/", 1)[1]).file_id)
    assert file.sha256 == hashlib.sha256(b"a,b\n1,").hexdigest()


def test_abandoned_uploads_are_swept(ana):
    url = begin(ana, 10)
    upload_id = url.rsplit("/", 1)[1]
    with transaction() as session:
        session.get(Upload, upload_id).updated_at = utcnow() - 2 * uploads.ABANDONED_AFTER
    with transaction() as session:
        assert uploads.forget_abandoned(session) == 1
    assert not uploads.spool_path(upload_id).exists()


def test_many_parts_are_refused_early(ana):
    parts = b"".join(b'--x\r\nContent-Disposition: form-data; name="a%d"\r\n\r\n1\r\n' % i for i in range(2000))
    answer = ana.post(
        f"/projects/{ana.project}/files",
        content=parts + b"--x--\r\n",
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert 400 <= answer.status_code < 500
    assert not list(Path(uploads.storage.uploads_dir()).iterdir())


def test_what_stopped_half_way_is_listed_for_its_owner_and_discarded(ana):
    content = os.urandom(2_000_000)
    url = begin(ana, len(content), "half <b>.csv")
    send(ana, url, 0, content[:500_000])
    page = ana.get(f"/projects/{ana.project}/data").text
    assert f'data-url="{url}" data-name="half &lt;b&gt;.csv" data-size="2000000"' in page
    assert "500 kB of 2.0 MB arrived" in page
    other = browser_of(ana.app, make_person("Ben", workspace_id=ana.person.workspace_id))
    assert url not in other.get(f"/projects/{ana.project}/data").text
    assert other.post(f"{url}/discard").status_code == 404
    assert ana.post(f"{url}/discard").status_code == 303
    assert not uploads.spool_path(url.rsplit("/", 1)[1]).exists()
    assert url not in ana.get(f"/projects/{ana.project}/data").text
    done = begin(ana, 3, "whole.txt")
    send(ana, done, 0, b"abc")
    assert done not in ana.get(f"/projects/{ana.project}/data").text


@pytest.fixture
def served(app):
    """The application on a real socket."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started, "the server has started")
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(10)


def test_a_cut_connection_resumes_where_it_was(ana, served):
    content = os.urandom(6_000_000)
    url = begin(ana, len(content), "big.bin")
    headers = {**dict(ana.headers), **BODY, "Cookie": f"sid={ana.person.cookie}", "Host": f"localhost:{served}"}
    connection = http.client.HTTPConnection("127.0.0.1", served, timeout=20)
    connection.putrequest("PATCH", url, skip_host=True)
    for name, value in {**headers, "Upload-Offset": "0", "Content-Length": str(len(content))}.items():
        if name.lower() not in ("content-length", "host") or value != headers.get("content-length"):
            connection.putheader(name, value)
    connection.endheaders()
    connection.send(content[:4_000_000])
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    upload_id = url.rsplit("/", 1)[1]
    reached = wait_for(lambda: row(Upload, upload_id).offset_bytes, "something was kept")
    assert 0 < reached <= 4_000_000
    wait_for(lambda: send(ana, url, offset_of(ana, url), b"").status_code == 204, "the cut request has let go")
    reached = offset_of(ana, url)
    assert send(ana, url, reached, content[reached:]).status_code == 204
    assert row(SourceFile, row(Upload, upload_id).file_id).sha256 == hashlib.sha256(content).hexdigest()


def test_a_form_that_would_fill_the_disk_is_refused_before_it_is_read(ana, monkeypatch):
    """Its parts land in temporary files before anything can be counted."""
    monkeypatch.setenv("GPT_BUILDER_UPLOAD_LIMIT_BYTES", "1000")
    config.get_settings.cache_clear()
    spooled = []
    real = tempfile.SpooledTemporaryFile
    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", lambda **k: spooled.append(k) or real(**k))
    answer = ana.post(f"/projects/{ana.project}/files", files={"file": ("a.csv", b"x" * (2 << 20))})
    assert answer.status_code == 413
    endless = (b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n', *[b"y" * 65536] * 40)
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert ana.post(f"/projects/{ana.project}/files", content=iter(endless), headers=headers).status_code == 413
    spooled.clear()  # what came without an announced length is cut at the limit, not before
    monkeypatch.setenv("GPT_BUILDER_UPLOAD_LIMIT_BYTES", str(10**12))
    monkeypatch.setenv("GPT_BUILDER_DISK_RESERVE_BYTES", str(10**17))
    config.get_settings.cache_clear()
    answer = ana.post(f"/projects/{ana.project}/files", files={"file": ("a.csv", b"x" * 1000)})
    assert answer.status_code == 507
    assert spooled == []
