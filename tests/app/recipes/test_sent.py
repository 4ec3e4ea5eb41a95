"""The recipe page says when the newest rows were sent by a program, past the Clean page."""

from fastapi import FastAPI

from app.core.db import transaction
from app.datasets.models import SourceFile
from tests.factories import a_version
from tests.visitors import browser_of, make_person, make_project


def test_rows_that_a_program_sent_are_told(app: FastAPI) -> None:
    ana = make_person("Ana", "owner")
    project_id = make_project(ana.workspace_id)
    with transaction() as session:
        version = a_version(session, project_id)
    browser, told = browser_of(app, ana), "Version 1 holds one file that a program sent."
    assert told not in browser.get(f"/projects/{project_id}/recipe").text
    with transaction() as session:
        file = SourceFile(project_id=project_id, filename="sums.jsonl", size_bytes=9)
        session.add(file)
        session.flush()
        session.merge(version).file_id = file.id
    page = browser.get(f"/projects/{project_id}/recipe").text
    assert told in page
    assert "sent by a program</option>" in page
