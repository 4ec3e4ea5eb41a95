"""Edits by hand: laid over rows, applied when they are prepared, undone, and not lost between two people."""

import numpy as np
import pytest
from sqlalchemy import select

from app.core.db import reading, transaction
from app.core.errors import Conflict, Forbidden, Invalid
from app.datasets import plans, row_changes, service
from app.datasets.browsing.opening import working_set
from app.datasets.browsing.sets import read
from app.datasets.edits import DELETED, EditLayer, apply_edits, row_keys
from app.datasets.models import CleaningPlan
from worker.tasks import datasets as tasks

ROWS = b"question,answer\n" + b"".join(b"How many %d?,Answer %d\n" % (i, i) for i in range(40))


@pytest.fixture
def project(place, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(ROWS)
    with transaction() as session:
        file = service.receive(
            session,
            place.ada,
            project_id=place.project_id,
            filename="rows.csv",
            path=path,
            sha256="0" * 64,
            origin="upload",
        )
    tasks.import_file(file.id)
    prepare()
    return place


def prepare() -> None:
    with transaction() as session:
        plan = session.scalars(select(CleaningPlan)).one()
        plan.state = "queued"
    tasks.prepare(plan.id)


def plan_of(session):
    return session.scalars(select(CleaningPlan)).one()


def rows_now() -> list[dict]:
    with reading() as session:
        found = working_set(plan_of(session), {})
    return read(found, range(found.rows))


def key_of(row) -> int:
    return int(row_keys([row["_file"]], np.array([row["_row"]]))[0])


def change(project, row, kind, **value):
    with transaction() as session:
        return row_changes.change_row(
            session, project.ada, project.project_id, key=key_of(row), kind=kind, value=value
        ).id


def test_keys_differ_between_files_and_rows_and_never_change():
    keys = row_keys(["a"] * 1000 + ["b"] * 1000, np.tile(np.arange(1000), 2))
    assert len(set(keys.tolist())) == 2000
    assert int(row_keys(["a"], np.array([7]))[0]) == 16849879900447797715


def test_an_edit_survives_a_new_preparation_and_can_be_undone(project):
    first = rows_now()[0]
    messages = [dict(m) for m in first["messages"]]
    messages[-1]["content"] = "Forty-two"
    done = change(project, first, "edit", example={"kind": "chat", "messages": messages, "text": ""})
    change(project, rows_now()[1], "delete")
    assert rows_now()[0]["messages"][-1]["content"] == "Answer 0", "the rows themselves stay until they are prepared"
    prepare()
    after = rows_now()
    assert after[0]["messages"][-1]["content"] == "Forty-two"
    assert len(after) == 39
    assert [r["messages"][0]["content"] for r in after[:2]] == ["How many 0?", "How many 2?"]
    with transaction() as session:
        row_changes.undo(session, project.ada, project.project_id, done)
    prepare()
    assert rows_now()[0]["messages"][-1]["content"] == "Answer 0"
    with transaction() as session, pytest.raises(Conflict):
        row_changes.undo(session, project.ada, project.project_id, done)


def test_many_rows_at_once_and_later_changes_win(project):
    rows = rows_now()
    keys = np.array([key_of(row) for row in rows[10:30]], np.uint64)
    with transaction() as session:
        deleted = row_changes.change_rows(session, project.ada, project.project_id, keys=keys, kind="delete")
        row_changes.change_rows(
            session, project.ada, project.project_id, keys=keys[:5], kind="tag", value={"tag": "look"}
        )
    change(project, rows[12], "restore")
    with reading() as session:
        found = row_changes.overlay(session, plan_of(session), [key_of(row) for row in rows])
        layer = EditLayer.load(row_changes.layer_path(session, plan_of(session)))
    assert len(found) == len(layer) == 20
    assert found[key_of(rows[12])].flags == 0
    assert found[key_of(rows[12])].tags == ("look",)
    assert found[key_of(rows[20])].flags == DELETED
    prepare()
    assert len(rows_now()) == 40 - 19
    with transaction() as session:
        row_changes.undo(session, project.ada, project.project_id, deleted.id)
    prepare()
    assert len(rows_now()) == 40


def test_only_editors_may_and_empty_changes_are_refused(project):
    with transaction() as session, pytest.raises(Forbidden):
        row_changes.change_row(session, project.vera, project.project_id, key=1, kind="delete")
    with transaction() as session, pytest.raises(Invalid):
        row_changes.change_rows(session, project.ada, project.project_id, keys=np.zeros(0, np.uint64), kind="delete")
    with transaction() as session, pytest.raises(Invalid) as refused:
        row_changes.change_row(session, project.ada, project.project_id, key=1, kind="tag", value={"tag": " " * 9})
    assert "tag" in refused.value.fields


def test_a_layer_of_a_hundred_thousand_edits_comes_back_whole_and_touches_only_its_rows(tmp_path):
    keys = row_keys(["f"] * 200_000, np.arange(200_000))
    chosen = np.sort(keys[::2])
    layer = EditLayer(
        chosen, np.zeros(len(chosen), np.uint8), {int(keys[0]): b'{"text":"new"}'},
        {int(key): "b" for key in chosen[:3]}, {int(keys[2]): ("x", "y")},
    )  # fmt: skip
    layer.save(tmp_path / "layer.parquet")
    loaded = EditLayer.load(tmp_path / "layer.parquet")
    assert len(loaded) == 100_000
    batch = [{"kind": "text", "text": "old", "label": "", "meta": {}} for _ in range(4)]
    assert apply_edits(batch, keys[:4], loaded) == ["edited", "", "edited", ""]
    assert [example["text"] for example in batch] == ["new", "old", "old", "old"]
    assert batch[2]["meta"]["tags"] == ["x", "y"]


def test_plans_name_the_edits_so_that_a_version_can_be_made_again(project):
    with reading() as session:
        assert plans.planned(session, project.project_id).edits is None
    change(project, rows_now()[3], "exclude")
    with reading() as session:
        first = plans.planned(session, project.project_id).edits
        assert first == plans.planned(session, project.project_id).edits
    change(project, rows_now()[4], "exclude")
    with reading() as session:
        assert plans.planned(session, project.project_id).edits.sha256 != first.sha256
    assert len(EditLayer.load(first.path)) == 1, "the file of an earlier plan stays as it was"
