"""The system check tells owners everything, and other people nothing about the machine."""

import re

import pytest
from fastapi import FastAPI

from app.core.config import get_settings
from tests.visitors import browser_of, make_person


def shown(app: FastAPI, role: str) -> str:
    return browser_of(app, make_person(role=role)).get("/system").text


def test_owners_see_where_things_are(app: FastAPI, database: object) -> None:
    text = shown(app, "owner")
    assert str(get_settings().home_dir) in text
    assert "gpt-builder doctor" in text


@pytest.mark.parametrize("role", ["viewer", "annotator", "editor"])
def test_other_people_see_only_whether_it_is_well(app: FastAPI, database: object, role: str) -> None:
    text = shown(app, role)
    assert str(get_settings().home_dir) not in text
    content = text[text.index("<main") : text.index("</main>")]
    assert not re.search(r"\d\.\d|GB|Python|torch|gpt-builder doctor|/", re.sub(r"<[^>]*>", "", content))
    assert "is well" in content
