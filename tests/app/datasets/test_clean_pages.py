"""The Clean pages without scripts: look at a step, preview other settings, apply, except rows, presets."""

import json
import re

from app.core.db import reading
from app.datasets import clean_shown
from app.datasets.models import CleaningPlan
from app.datasets.steps.catalogue import STEPS
from tests.app.datasets.test_pages import ana, bring, get, post, work  # noqa: F401

SECRET, MAIL = "sk-proj-abcDEF1234567890abcdEFGH", "bob@private.org"
ROWS = [
    {
        "prompt": f"Where do I write to <b>{i}</b>?",
        "completion": f"Write to {MAIL} or helper{i}@private.org <script>x</script>",
    }
    for i in range(3)
] + [
    {"prompt": "My key?", "completion": f"It is {SECRET}\u200b, keep it"},
    {"prompt": "Say it", "completion": "What the fuck is that"},
    {"prompt": "Can you help?", "completion": "As an AI language model, I cannot."},
    {"prompt": "Thanks a lot", "completion": "You are welcome, any time."},
]


def test_a_step_is_looked_at_previewed_applied_and_excepted(ana, tmp_path):  # noqa: F811
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, ROWS)))
    file_id = bring(ana, source)
    post(ana, f"/files/{file_id}/mapping", shape="pair", prompt_column="prompt", answer_column="completion")
    work()
    clean = f"/projects/{ana.project}/clean"
    page = get(ana, clean)
    assert "4 rows contain personal data or secrets" in page
    assert "1 row contains bad language" in page
    for name in STEPS:
        shown = get(ana, f"{clean}/step?name={name}")
        assert SECRET not in shown, name
        assert MAIL not in shown, name
    shown = get(ana, f"{clean}/step?name=personal")
    assert "Names, postal addresses and dates of birth are not looked for." in shown
    assert "E-mail addresses" in shown
    assert "&lt;script&gt;" in shown
    assert "<script>x" not in shown
    assert "clean-veiled" in shown
    assert "Measured on 300 made items" in shown
    assert "clean-profane" in get(ana, f"{clean}/step?name=profanity")
    answer = ana.post(f"{clean}/preview", data={"step": "personal", "is_full": "1", "email": "keep", "reason": "ours"})
    assert answer.status_code == 200
    assert "Preview: nothing is changed" in answer.text
    assert "An estimate from 7 rows" in answer.text
    refused = ana.post(f"{clean}/preview", data={"step": "personal", "is_full": "1", "email": "keep"})
    assert refused.status_code == 422
    assert "Say why these are kept." in refused.text
    post(ana, f"{clean}/steps", step="personal", is_full="1", email="replace")
    work()
    page = get(ana, clean)
    assert "What became of the rows" in page
    shown = get(ana, f"{clean}/step?name=personal&code=fix.pii.email")
    rid = re.search(r'name="rid" value="(\d+)"', shown)[1]
    assert "&lt;EMAIL_1&gt;" in shown
    post(ana, f"{clean}/spare", step="personal", scope="row", rid=rid)
    post(ana, f"{clean}/spare", step="personal", scope="code", code="fix.pii.key")
    work()
    shown = get(ana, f"{clean}/step?name=personal")
    assert "This row" in shown
    with reading() as session:
        plan = session.query(CleaningPlan).one()
        assert plan.report["steps"][[s["name"] for s in plan.report["steps"]].index("personal")]["changed"] == 2
        assert SECRET not in json.dumps([plan.report, plan.steps, plan.overrides])
    post(ana, f"{clean}/forget", step="personal")
    post(ana, f"{clean}/preset", name="strict")
    work()
    page = get(ana, clean)
    assert "marks only" in page
    assert ana.post(f"{clean}/preset", data={"name": "nonsense"}).status_code == 404
    assert ana.post(f"{clean}/spare", data={"step": "exact", "scope": "row", "rid": "999"}).status_code == 404
    post(ana, f"{clean}/undo")


def test_pieces_name_what_cannot_be_seen():
    assert clean_shown.pieces("a\u200bb") == [("", "a"), ("invisible", "U+200B"), ("", "b")]
    assert [p.kind for p in clean_shown.pieces("to b••@x now <EMAIL_2>")] == ["", "veiled", "", "name"]
    parts = clean_shown.parts_of("今日は晴れ", "今日は雨")
    assert [p.is_same for p in parts] == [True, False], "signs are compared where words are not parted"
    assert [len(p.before) for p in clean_shown.parts_of("one two three", "one 2 three")] == [1, 1, 1]
