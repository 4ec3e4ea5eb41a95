"""The Clean pages without scripts: look at a step, preview other settings, apply, except rows, presets."""

import json
import re
import signal

from app.core.db import reading, transaction
from app.datasets import clean_shown, shown
from app.datasets.models import CleaningPlan, DatasetVersion
from app.datasets.reports import PrepareReport, Shown, StepReport
from app.datasets.statistics import Statistics
from app.datasets.steps.catalogue import STEPS
from tests.app.datasets.test_pages import ana, bring, get, post, work  # noqa: F401
from worker.tasks.datasets import _crash_sentence

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
    assert "An estimate from" not in answer.text, "all seven rows were looked at"
    assert 'form="step-form"' in answer.text, "the button above applies what was previewed"
    assert "Replace them</span></button>" not in answer.text
    refused = ana.post(f"{clean}/preview", data={"step": "personal", "is_full": "1", "email": "keep"})
    assert refused.status_code == 422
    assert "Say why these are kept." in refused.text
    post(ana, f"{clean}/steps", step="personal", is_full="1", email="replace")
    assert "shows them as they were before" in get(ana, f"{clean}/step?name=personal")
    work()
    assert "The rows are prepared" in get(ana, f"{clean}/step?name=personal&waited=1")
    assert "as they were before" not in get(ana, f"{clean}/step?name=personal")
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


LONG = "My parcel from the shop in Leeds has been on its way for two weeks and nobody on the phone can say where it is"


def test_what_goes_is_shown_beside_its_twin_and_long_texts_by_the_models_tokens(ana, tmp_path):  # noqa: F811
    source = tmp_path / "texts.jsonl"
    texts = [LONG, "Tea is ready at noon in the small kitchen.", f"{LONG} today", "So it goes. " * 4000]
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    file_id = bring(ana, source)
    post(ana, f"/files/{file_id}/mapping", shape="text", text_column="text")
    work()
    clean = f"/projects/{ana.project}/clean"
    near = get(ana, f"{clean}/step?name=near")
    assert "Goes: row 3" in near
    assert "Stays: row 1" in near
    assert re.search(r"\b9\d % alike", near)
    assert "<mark> today</mark>" in near
    strict = ana.post(f"{clean}/preview", data={"step": "near", "is_full": "1", "threshold": "0.95", "kept": "longest"})
    assert "Goes: row 1" in strict.text
    assert "Stays: row 3" in strict.text
    assert "1 row is longer than the model reads at once" in get(ana, clean)
    tokens = get(ana, f"{clean}/step?name=tokens")
    assert "Starter model" in tokens
    assert "Split them into several rows" in tokens
    form = {"step": "tokens", "is_full": "1", "texts": "split", "conversations": "turns", "limit": "1000"}
    preview = ana.post(f"{clean}/preview", data=form).text
    assert "✂" in preview
    post(ana, f"{clean}/steps", **form)
    work()
    with reading() as session:
        made = session.query(CleaningPlan).one().report["made"]
    assert made > 5
    assert f"{made} more by splitting" in get(ana, clean)
    row = get(ana, f"/projects/{ana.project}/rows/5")
    assert "Part 2 of a longer row." in row
    assert "?edit=1" not in row
    refused = ana.post(f"{clean}/preview", data={**form, "limit": "3"})
    assert (refused.status_code, "Write 0, or at least 16." in refused.text) == (422, True)


def test_a_fix_shows_a_row_in_which_something_can_be_seen():
    seen = [
        Shown(rid=1, code="fix.space", before=" \n", after=""),
        Shown(rid=2, code="fix.space", before="a  b", after="a b"),
    ]
    step = StepReport(name="whitespace", is_applied=False, changed=2, examples=seen)
    report = PrepareReport(rows_in=2, rows=2, out=0, unmapped=0, steps=[step], statistics=Statistics())
    assert shown.fix_cards(report)[0].example == seen[1]


def test_rows_that_were_not_prepared_to_the_end_are_prepared_again_before_they_are_frozen(ana, tmp_path):  # noqa: F811
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, ROWS)))
    file_id = bring(ana, source)
    post(ana, f"/files/{file_id}/mapping", shape="pair", prompt_column="prompt", answer_column="completion")
    work()
    clean = f"/projects/{ana.project}/clean"
    post(ana, f"/projects/{ana.project}/versions")
    work()
    sentence = _crash_sentence(-signal.SIGKILL, "preparing")
    assert "JSONL" not in sentence, "no file was read"
    with transaction() as session:
        plan = session.query(CleaningPlan).one()
        plan.state, plan.error = "failed", sentence
        version = session.query(DatasetVersion).one()
        version.state = "retired"
    page = get(ana, clean)
    assert sentence in page
    assert "Retired: a source was forgotten" in page
    assert re.search(r"<button[^>]* disabled[^>]*>(?:(?!</button>).)*Freeze version", page, re.S)
    assert f'action="{clean}/again"' in page
    post(ana, f"{clean}/again")
    work()
    assert not re.search(r"<button[^>]* disabled[^>]*>(?:(?!</button>).)*Freeze version", get(ana, clean), re.S)
