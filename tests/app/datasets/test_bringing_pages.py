"""Bringing from elsewhere as a browser gets it, without JavaScript."""

from pathlib import Path

import pytest
from sqlalchemy import select

from app.core.db import reading
from app.datasets.models import RemoteSource, SourceFile
from tests.visitors import browser_of, make_person, make_project
from worker.tasks import datasets as tasks

DOCUMENTS = Path(__file__).parents[2] / "fixtures" / "documents"


@pytest.fixture
def ana(app):
    person = make_person()
    browser = browser_of(app, person)
    browser.project = make_project(person.workspace_id)
    return browser


def rows(model) -> list:
    with reading() as session:
        return list(session.scalars(select(model)))


def upload(browser, name: str) -> SourceFile:
    files = {"file": (name, (DOCUMENTS / name).read_bytes())}
    assert browser.post(f"/projects/{browser.project}/files", files=files).status_code == 303
    (file,) = rows(SourceFile)
    tasks.import_file(file.id)
    (file,) = rows(SourceFile)
    return file


def test_an_address_is_queued_stopped_and_removed(ana):
    page = f"/projects/{ana.project}/data"
    assert "Fetch a page, a file or a web site" in ana.get(page).text
    form = {"kind": "site", "address": "example.org/docs/", "page_limit": "20", "licence": "CC0"}
    assert ana.post(f"/projects/{ana.project}/remote", data=form).status_code == 303
    (source,) = rows(RemoteSource)
    assert (source.address, source.state, source.details) == ("https://example.org/docs/", "queued", {"page_limit": 20})
    assert "Waiting to be fetched" in ana.get(page).text
    assert "https://example.org/docs/" in ana.get(f"{page}/live").text
    assert ana.post(f"/remote/{source.id}/cancel").status_code == 303
    assert "What arrived is kept" in ana.get(page).text
    assert ana.post(f"/remote/{source.id}/delete").status_code == 303
    assert "https://example.org/docs/" not in ana.get(page).text


def test_a_wrong_address_comes_back_with_its_sentence_and_without_keys(ana):
    form = {"kind": "bucket", "address": "nowhere", "key": "AKIA1", "secret": "hush-hush"}
    answer = ana.post(f"/projects/{ana.project}/remote", data=form)
    assert answer.status_code == 422
    assert "Write it as s3://bucket/path" in answer.text
    assert "nowhere" in answer.text
    assert "hush-hush" not in answer.text
    assert rows(RemoteSource) == []


def test_rows_are_typed_and_changed(ana):
    url = f"/projects/{ana.project}/typed"
    assert 'name="question"' in ana.get(url).text
    more = ana.post(url, data={"question": ["Who?"], "answer": ["Me"], "add": "1"})
    assert (more.status_code, more.text.count('name="question"')) == (200, 5)
    assert ana.post(url, data={"question": ["Who?"], "answer": [""]}).status_code == 422
    assert ana.post(url, data={"question": ["Who?", ""], "answer": ["Me", ""]}).status_code == 303
    (file,) = rows(SourceFile)
    tasks.import_file(file.id)
    assert f"/files/{file.id}/typed" in ana.get(f"/files/{file.id}").text
    assert "Who?" in ana.get(f"/files/{file.id}/typed").text
    assert ana.post(f"/files/{file.id}/typed", data={"question": "Who?", "answer": "You"}).status_code == 303
    tasks.import_file(file.id)
    assert "You" in ana.get(f"/files/{file.id}").text


def test_a_locked_document_asks_for_its_password_and_keeps_it_sealed(ana):
    file = upload(ana, "locked.pdf")
    assert file.state == "failed"
    page = ana.get(f"/files/{file.id}").text
    assert "locked with a password" in page
    assert 'name="password"' in page
    assert f'action="/files/{file.id}/retry"' not in page, "reading it again without the password is of no use"
    assert ana.post(f"/files/{file.id}/reading", data={"password": "sesame"}).status_code == 303
    tasks.import_file(file.id)
    (file,) = rows(SourceFile)
    assert (file.state, file.rows) == ("succeeded", 2)
    assert 'name="encoding"' not in ana.get(f"/files/{file.id}").text, "a PDF has none to choose"
    assert "sesame" not in file.sealed_password
    assert "sesame" not in str(file.options)


def test_a_chat_offers_its_speakers_and_an_archive_names_its_members(ana):
    file = upload(ana, "irc.txt")
    page = ana.get(f"/files/{file.id}").text
    assert "Learn the answers of" in page
    assert '<option value="teabot" selected>' in page
    assert ana.post(f"/files/{file.id}/reading", data={"assistant": "ada", "gap_minutes": "600"}).status_code == 303
    tasks.import_file(file.id)
    assert '<option value="ada" selected>' in ana.get(f"/files/{file.id}").text


def test_findings_of_an_archive_name_the_member(ana):
    file = upload(ana, "mixed.zip")
    page = ana.get(f"/files/{file.id}").text
    assert "First at photo.png, line 1:" in page
    assert "unpack it and bring them one by one" in page
    findings = ana.get(f"/files/{file.id}/findings?code=member.refused").text
    assert "photo.png, line 1" in findings
    assert "This is a picture." in findings
