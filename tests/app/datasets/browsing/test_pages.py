"""Rows in a browser without scripts: looking through, searching, one row in three views, editing, bulk, undo."""

import re

import pytest
from sqlalchemy import select

from app.core.db import reading
from app.datasets.browsing import background, counting, table
from app.datasets.browsing import pages as table_pages
from app.datasets.browsing.index import Choice
from app.datasets.browsing.model_view import model_of
from app.datasets.cleaning import CODES
from app.datasets.findings import REASONS
from app.datasets.models import DatasetVersion, RowChange
from app.recipes import bases
from tests.app.datasets.test_pages import bring, get, post, work
from tests.visitors import browser_of, make_person, make_project

LINES = [
    f"Question  {i} about {'soup' if i % 2 else 'bread'}?,Answer {i},{'wet' if i % 2 else 'dry'}" for i in range(250)
]


@pytest.fixture
def ana(app, tmp_path):
    person = make_person()
    browser = browser_of(app, person)
    browser.project = make_project(person.workspace_id)
    path = tmp_path / "meals.csv"
    path.write_text("question,answer,kind\n" + "\n".join(LINES))
    file_id = bring(browser, path)
    post(
        browser,
        f"/files/{file_id}/mapping",
        shape="pair",
        prompt_column="question",
        answer_column="answer",
        label="kind",
    )
    work()
    browser.person = person
    browser.rows = f"/projects/{browser.project}/rows"
    return browser


def numbers(page: str) -> list[int]:
    return [int(n.replace(",", "")) for n in re.findall(r'class="rows-link"[^>]*>([\d,]+)<', page)]


def hidden(page: str, name: str) -> str:
    return re.search(rf'name="{name}" value="([^"]*)"', page).group(1)


def test_the_table_pages_searches_filters_and_sorts_by_its_address(ana):
    assert numbers(get(ana, ana.rows)) == list(range(1, 101))
    assert numbers(get(ana, f"{ana.rows}?page=3")) == list(range(201, 251))
    found = get(ana, f"{ana.rows}?q=SOUP&page=2")
    assert numbers(found) == list(range(202, 251, 2))
    assert "125 rows found" in found
    assert "Rows 101 to 125 of 125" in found
    assert numbers(get(ana, f"{ana.rows}?label=dry&sort=-row"))[:2] == [249, 247]
    assert "No row has “zebrafish”" in get(ana, f"{ana.rows}?q=zebrafish")
    assert ana.get(f"{ana.rows}?row=7").headers["location"] == f"{ana.rows}/7"


def test_a_row_in_three_views_with_its_neighbours_in_the_filter(ana):
    page = get(ana, f"{ana.rows}/4?label=wet")
    assert "Question  3 about soup?" in page
    assert f'href="{ana.rows}/2?view=conversation&amp;label=wet" rel="prev"' in page.replace("&label", "&amp;label")
    raw = get(ana, f"{ana.rows}/4?view=raw")
    assert "meals.csv" in raw
    assert ">wet<" in raw
    model = get(ana, f"{ana.rows}/4?view=model")
    learned = "".join(re.findall(r'class="token[^"]*" data-state="learned" title="\d+">([^<]*)<', model))
    assert learned == "Answer 3&lt;|im_end|&gt;"
    gone = ana.get(f"{ana.rows}/251")
    assert gone.status_code == 410
    assert "not there any more" in gone.text


def test_an_edit_shows_at_once_and_the_second_of_two_editors_is_told(ana):
    page = get(ana, f"{ana.rows}/2?edit=1")
    form = {"key": hidden(page, "key"), "seen": hidden(page, "seen"), "role": ["user", "assistant"], "label": "wet"}
    first = ana.post(f"{ana.rows}/2", data=form | {"content": ["Which soup?", "Leek"]})
    assert first.status_code == 303
    assert "Which soup?" in get(ana, ana.rows)
    second = ana.post(f"{ana.rows}/2", data=form | {"content": ["Which bread?", "Rye"]})
    assert second.status_code == 422, "the page is shown in the place of the form"
    assert "Ana changed this row while you were editing." in second.text
    assert "Which bread?" in second.text, "what was typed is kept"
    assert "Leek" in get(ana, f"{ana.rows}/2")
    again = ana.post(
        f"{ana.rows}/2", data=form | {"seen": hidden(second.text, "seen"), "content": ["Which bread?", "Rye"]}
    )
    assert again.status_code == 303
    assert "Rye" in get(ana, f"{ana.rows}/2")
    empty = get(ana, f"{ana.rows}/3?edit=1")
    refused = ana.post(
        f"{ana.rows}/3",
        data={"key": hidden(empty, "key"), "seen": hidden(empty, "seen"), "role": ["user", ""], "content": ["a", "b"]},
    )
    assert refused.status_code == 422
    assert "needs at least one answer" in refused.text
    two = {"key": hidden(empty, "key"), "seen": hidden(empty, "seen"), "role": ["user", "assistant", ""]}
    more = ana.post(f"{ana.rows}/3", data=two | {"content": ["Hot?", "Yes.", "And the plate?"]})
    assert more.status_code == 303
    assert "And the plate?" in get(ana, f"{ana.rows}/3"), "a new turn without a chosen speaker is not lost"


def test_an_action_takes_all_rows_of_the_filter_and_is_undone_at_once(ana):
    location = post(ana, f"{ana.rows}/changes", kind="tag", value="liquid", scope="all", label="wet")
    assert location == f"{ana.rows}?label=wet"
    tagged = get(ana, f"{ana.rows}?tag=liquid&page=2")
    assert "125 rows found" in tagged
    post(ana, f"{ana.rows}/changes", kind="delete", scope="all", q="bread")
    assert "125 rows found" in get(ana, f"{ana.rows}?state=deleted")
    post(ana, f"{ana.rows}/prepare")
    work()
    assert "Rows 1 to 100 of 125" in get(ana, ana.rows)
    history = get(ana, f"{ana.rows}/changes")
    assert "125 rows: deleted" in history
    with reading() as session:
        deleted = session.scalar(select(RowChange.id).where(RowChange.kind == "delete"))
    post(ana, f"{ana.rows}/changes/{deleted}/undo")
    post(ana, f"{ana.rows}/prepare")
    work()
    assert "Rows 1 to 100 of 250" in get(ana, ana.rows)


def test_ticked_rows_and_one_row(ana):
    keys = re.findall(r'name="key" value="(\d+)"', get(ana, ana.rows))[:3]
    post(ana, f"{ana.rows}/changes", kind="exclude", scope="ticked", key=keys)
    assert numbers(get(ana, f"{ana.rows}?state=excluded")) == [1, 2, 3]
    stale = ana.post(f"{ana.rows}/changes", data={"kind": "delete", "scope": "one", "number": "9", "key": keys[0]})
    assert stale.status_code == 410, "the row of that number is another one now"
    post(ana, f"{ana.rows}/changes", kind="delete")
    assert "No row fits" in get(ana, f"{ana.rows}?state=deleted"), "nothing was ticked"
    assert re.search(r'value="ticked" checked', get(ana, ana.rows)), "all rows are never meant by themselves"
    post(ana, f"{ana.rows}/changes", kind="delete", key=keys[0])
    assert numbers(get(ana, f"{ana.rows}?state=deleted")) == [1]


def test_every_mark_of_a_row_is_told_in_words():
    for code in (*CODES, *REASONS, "hand.edited", "hand.deleted", "hand.excluded", "hand.kept", "changed:whitespace"):
        assert "." not in table._mark_words(Choice(value=code, label="", number=1, count=1)).rstrip("."), code


def test_a_version_is_browsed_the_same_way_and_not_changed(ana):
    post(ana, f"/projects/{ana.project}/versions")
    work()
    with reading() as session:
        rows = f"/versions/{session.scalar(select(DatasetVersion.id))}/rows"
    page = get(ana, f"{rows}?split=test&col=split")
    assert "rows found" in page
    assert set(re.findall(r'data-name="split">(\w+)<', page)) == {"Test"}
    assert "rows-bulk" not in page
    assert "meals.csv" in get(ana, f"{rows}/1?view=raw")
    made = post(ana, f"{rows.removesuffix('/rows')}/combinations", operation="sample", rows="40", seed="1")
    work()
    assert "40 rows" in get(ana, made), "a version made of another has a page like every version"
    assert "rows found" in get(ana, f"{made}/rows?q=soup")
    for view in ("conversation", "model", "raw"):
        assert "Row 7" in get(ana, f"{made}/rows/7?view={view}")


def test_statistics_are_of_a_sample_first_and_then_of_all_rows(ana, monkeypatch):
    if bases.starter() is None:
        pytest.skip("the starter model is not installed")
    with reading() as session:
        rows = table_pages.working(session, ana.person.actor, ana.project)
        model = model_of(session, ana.person.actor, ana.project)
    lock = counting.report_path(rows, model).with_suffix(".lock")
    rows.folder.mkdir(parents=True, exist_ok=True)

    def stop(done: int, _total: int) -> None:
        if done >= 200:
            raise KeyboardInterrupt

    monkeypatch.setattr(counting, "FIRST_ROWS", 50)
    monkeypatch.setattr(counting, "SLICE_ROWS", 100)
    with background._locked(lock), pytest.raises(KeyboardInterrupt):
        counting.count(rows, model, stop)
    with background._locked(lock):
        page = get(ana, f"/projects/{ana.project}/statistics")
    assert "For now on 50 of 250 rows" in page
    assert "200 of 250 rows are counted." in page
    get(ana, f"/projects/{ana.project}/statistics")
    background._children[lock].wait()
    page = get(ana, f"/projects/{ana.project}/statistics")
    assert "For now" not in page
    assert "are counted" not in page
    assert counting.report_of(rows, model).counted == 250


def test_another_version_is_made_from_the_form_as_it_stands(ana):
    post(ana, f"/projects/{ana.project}/versions")
    work()
    with reading() as session:
        version = f"/versions/{session.scalar(select(DatasetVersion.id))}"
    form = re.search(r'<form(?:(?!</form>).)*value="rebalance".*?</form>', get(ana, version), re.S)[0]
    sent = {}
    for tag in re.findall(r"<input[^>]*>", form):
        value = re.search(r' value="([^"]*)"', tag)
        sent[re.search(r' name="(\w+)"', tag)[1]] = value[1] if value else ""
    del sent["is_repeated"]
    assert sent["at_most"] == ""
    made = post(ana, f"{version}/combinations", by="label", **sent)
    work()
    assert "Frozen" in get(ana, made)
    refused = ana.post(f"{version}/combinations", data={"operation": "sample", "rows": "many", "seed": "1"})
    assert "Rows: Write a whole number." in refused.text
