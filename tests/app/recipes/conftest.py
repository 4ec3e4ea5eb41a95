"""What the tests of recipes share: a person at a recipe page."""

import pytest

from app.core.db import transaction
from tests.factories import a_version
from tests.visitors import browser_of, make_person, make_project


@pytest.fixture
def page(app, database):
    """A signed-in editor's browser, and the address of a recipe page whose version is frozen."""
    person = make_person(role="editor")
    project_id = make_project(person.workspace_id)
    with transaction() as session:
        a_version(session, project_id, rows=64)
    browser = browser_of(app, person)
    browser.project_id, browser.address = project_id, f"/projects/{project_id}/recipe"
    browser.workspace_id, browser.person = person.workspace_id, person
    return browser
