"""Contradictions: found, shown as a queue, decided by a person, and not asked about again."""

import json

import pytest
from sqlalchemy import select

from app.core.db import reading
from app.datasets.cleaning import MemoryStore, start
from app.datasets.models import CleaningPlan, RowChange
from app.datasets.steps.batches import of_examples
from app.datasets.steps.contract import ChosenStep
from app.datasets.steps.contradictions import CODE
from tests.visitors import browser_of, make_person, make_project
from worker.tasks import datasets as tasks

OPEN = "When are you open?"
LONG = (
    "How long does it take until a parcel from your shop in Leeds arrives at my house in the north of Scotland please"
)
PAIRS = [
    (OPEN, "From nine to five."), ("When are you OPEN", "Only on Mondays."), ("What do you sell?", "Tea."),
    (LONG, "Two days."), (f"{LONG}, thanks", "Two weeks."), ("What do you sell?", "tea"), ("Who are you?", "A shop."),
]  # fmt: skip


def test_equal_and_near_questions_with_other_answers_are_marked(tmp_path):
    rows = []
    for question, answer in [*PAIRS, *[("Write a poem", f"poem number {n}") for n in range(30)]]:
        turns = [{"role": "user", "content": question, "train": True}]
        turns += [{"role": "assistant", "content": answer, "train": True}]
        rows.append({"kind": "chat", "messages": turns, "text": "", "label": "", "meta": {}})
    batch = of_examples(rows)
    runner = start(ChosenStep(name="contradictions"))
    verdict = runner.decide(MemoryStore(batch, runner.look(batch), tmp_path))
    assert verdict.marked[CODE].tolist() == [0, 1, 3, 4], "“Tea.” and “tea” agree; poems are many on purpose"
    assert not verdict.removals


@pytest.fixture
def ana(app):
    person = make_person()
    browser = browser_of(app, person)
    browser.project = make_project(person.workspace_id)
    return browser


def prepared() -> None:
    with reading() as session:
        plan_id = session.scalars(select(CleaningPlan.id)).one()
    tasks.prepare(plan_id)


def test_a_person_decides_and_is_not_asked_again(ana):
    lines = "".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in PAIRS)
    base = f"/projects/{ana.project}"
    answer = ana.post(f"{base}/files", files={"file": ("pairs.jsonl", lines.encode())})
    assert answer.status_code == 303, answer.text[-2000:]
    with reading() as session:
        from app.datasets.models import SourceFile

        file = session.scalars(select(SourceFile)).one()
    tasks.import_file(file.id)
    prepared()
    assert "Not looked for yet" in ana.get(f"{base}/contradictions").text
    assert ana.post(f"{base}/clean/steps", data={"step": "contradictions"}).status_code == 303
    prepared()
    page = ana.get(f"{base}/contradictions").text
    assert "Only on Mondays." in page
    assert "Two weeks." in page
    assert "A shop." not in page
    assert ana.post(f"{base}/contradictions", data={"verb": "all", "rid": ["0", "1"]}).status_code == 303
    assert ana.post(f"{base}/contradictions", data={"verb": "keep", "kept": "9", "rid": ["3", "4"]}).status_code == 422
    answer = ana.post(f"{base}/contradictions", data={"verb": "keep", "kept": "3", "rid": ["3", "4"]})
    assert answer.status_code == 303
    with reading() as session:
        assert session.scalars(select(RowChange.kind)).all() == ["delete"]
    assert "Two weeks." not in ana.get(f"{base}/contradictions").text
    prepared()
    page = ana.get(f"{base}/contradictions").text
    assert "Only on Mondays." not in page, "kept on purpose, by content, through a new preparation"
    assert "Nothing left to decide here" in page
