"""The data pages as a browser gets them, without JavaScript: bring, map, fix, clean, split, freeze, download."""

import base64
import json
import re
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from app.core.db import reading, transaction, utcnow
from app.datasets.models import CleaningPlan, DatasetVersion, SourceFile, Upload
from tests.visitors import browser_of, make_person, make_project
from worker.tasks import datasets as tasks

FIXTURES = Path(__file__).parents[2] / "fixtures"
NAUGHTY = json.loads((FIXTURES / "naughty_strings" / "blns.json").read_text())


@pytest.fixture
def ana(app):
    person = make_person()
    browser = browser_of(app, person)
    browser.project = make_project(person.workspace_id)
    return browser


def work() -> None:
    """Do everything that is queued, as the worker would."""
    with reading() as session:
        files = session.scalars(select(SourceFile.id).where(SourceFile.state == "queued")).all()
    for file_id in files:
        tasks.import_file(file_id)
    with reading() as session:
        plans = session.scalars(select(CleaningPlan.id).where(CleaningPlan.state == "queued")).all()
        versions = session.scalars(select(DatasetVersion.id).where(DatasetVersion.state == "queued")).all()
    for plan_id in plans:
        tasks.prepare(plan_id)
    for version_id in versions:
        tasks.freeze(version_id)


def post(browser, url: str, **data) -> str:
    answer = browser.post(url, data=data)
    assert answer.status_code == 303, (url, answer.status_code, answer.text[-3000:])
    return answer.headers["location"]


def get(browser, url: str) -> str:
    answer = browser.get(url)
    assert answer.status_code == 200, (url, answer.status_code, answer.text[-3000:])
    return answer.text


def bring(browser, path: Path) -> str:
    answer = browser.post(f"/projects/{browser.project}/files", files={"file": (path.name, path.read_bytes())})
    assert answer.status_code == 303, answer.text[-2000:]
    work()
    with reading() as session:
        return session.scalars(select(SourceFile.id).order_by(SourceFile.created_at.desc())).first()


def test_the_whole_way_without_scripts(ana):
    data, clean = f"/projects/{ana.project}/data", f"/projects/{ana.project}/clean"
    assert "Support messages" in get(ana, data)
    assert "Nothing to clean yet" in get(ana, clean)
    file_id = bring(ana, FIXTURES / "messy_made" / "missing_values.jsonl")
    page = get(ana, f"/files/{file_id}")
    assert "Prompts and completions" in page
    location = post(
        ana, f"/files/{file_id}/mapping", shape="pair", prompt_column="prompt", answer_column="completion",
        system_template="Answer shortly.",
    )  # fmt: skip
    assert location == data
    page = get(ana, data)
    assert 'hx-trigger="uploaded from:body, every 1s"' in page
    assert "Preparing the rows" in page, "the page says what is going on between reading and the first rows"
    assert "Possible when the rows are ready" in get(ana, clean)
    work()
    page = get(ana, data)
    assert "every 1s" not in page, "a quiet page asks for nothing"
    assert "89 rows without a question or an answer" in page
    assert "Rows 1 to 20 of 200" in page
    rows = data.removesuffix("data") + "rows"
    assert f'href="{rows}' in page
    assert "Rows 101 to 200 of 200" in get(ana, f"{rows}?page=2")
    assert "Duygular" in get(ana, f"{data}?q=duygular")
    assert "No row has “zebrafish”" in get(ana, f"{data}?q=zebrafish")
    assert "Question or answer missing" in get(ana, f"{clean}/step?name=missing")
    post(ana, f"{clean}/all")
    assert "Preparing the rows" in get(ana, clean)
    work()
    page = get(ana, clean)
    assert "Done: Rows without a question or an answer" in page
    post(ana, f"{clean}/undo")
    work()
    assert "Done:" not in get(ana, clean)
    post(ana, f"{clean}/steps", step="missing", is_full="1", placeholders="n/a, none")
    work()
    post(ana, f"/projects/{ana.project}/split", validation_percent="10", test_percent="10", seed="7")
    version = post(ana, f"/projects/{ana.project}/versions")
    assert "It is being frozen" in get(ana, version)
    work()
    page = get(ana, version)
    assert re.search(r"Fingerprint.*[0-9a-f]{64}", page, re.DOTALL)
    lines = get(ana, f"{version}/download").splitlines()
    assert len(lines) == 111
    assert json.loads(lines[0])["messages"][0] == {"role": "system", "content": "Answer shortly."}
    table = get(ana, f"{version}/download?format=csv")
    assert table.startswith("split,system,question,answer,text,source,row")
    manifest = json.loads(get(ana, f"{version}/manifest.json"))
    assert manifest["counts"]["rows"] == 111
    assert manifest["steps"][0]["params"]["placeholders"] == ["n/a", "none"]
    assert "Version 1" in get(ana, clean)


def test_after_the_last_row_is_read_it_is_said_what_goes_on(ana):
    bring(ana, FIXTURES / "messy_made" / "missing_values.jsonl")
    with transaction() as session:
        plan = session.scalars(select(CleaningPlan)).one()
        plan.state, plan.done, plan.total = "running", 200, 200
        plan.work_started_at = utcnow() - timedelta(minutes=1)
    for page in (get(ana, f"/projects/{ana.project}/clean"), get(ana, f"/projects/{ana.project}/data")):
        assert "200 rows are read. Now they are compared with each other and written." in page
        assert "about 0 s left" not in page
    with transaction() as session:
        session.scalars(select(CleaningPlan)).one().state = "queued"
    assert "Waiting to begin" in get(ana, f"/projects/{ana.project}/clean"), "figures of the last time are not shown"


def test_findings_have_lines_and_fixes(ana):
    file_id = bring(ana, FIXTURES / "messy_made" / "broken_lines.jsonl")
    page = get(ana, f"/files/{file_id}")
    assert "Lines that are not JSON (45)" in page
    assert "First at line 6:" in page
    lines = get(ana, f"/files/{file_id}/findings?code=json.invalid")
    assert "&#34;prompt&#34;: &#34;Come va la tua salute?&#34;" in lines
    post(ana, f"/files/{file_id}/reading", bad_json="repair")
    work()
    assert "Lines that are not JSON (15)" in get(ana, f"/files/{file_id}")


def test_a_wrong_way_of_reading_is_a_sentence(ana):
    file_id = bring(ana, FIXTURES / "messy_made" / "utf8.csv")
    answer = ana.post(f"/files/{file_id}/reading", data={"short_rows": "explode"})
    assert answer.status_code == 422
    answer = ana.post(f"/files/{file_id}/reading", data={"encoding": "nonsense-9"})
    work()
    assert "encoding" in get(ana, f"/files/{file_id}")
    assert ana.post(f"/projects/{ana.project}/split", data={"test_percent": "NaN"}).status_code == 422
    assert ana.post(f"/projects/{ana.project}/split", data={"test_percent": "1e400"}).status_code == 422
    both = ana.post(f"/projects/{ana.project}/split", data={"test_percent": "50", "validation_percent": "50"})
    assert both.status_code == 422
    assert "at most 80 per cent" in both.text


def test_mapping_preview_changes_nothing(ana):
    file_id = bring(ana, FIXTURES / "messy_made" / "utf8.csv")
    form = {"shape": "pair", "prompt_template": "In {lang}: {question}", "answer_column": "answer"}
    answer = ana.post(f"/files/{file_id}/mapping/preview", data=form, headers={"hx-request": "true"})
    assert answer.status_code == 200
    assert "In de: Der Kuchen ist eine Lüge." in answer.text
    assert "<!doctype" not in answer.text
    assert "<!doctype" in ana.post(f"/files/{file_id}/mapping/preview", data=form).text
    with reading() as session:
        assert session.get(SourceFile, file_id).mapping["prompt"] == "{question}"


def test_roles_of_speakers_can_be_said(ana):
    rows = [{"dialog": [{"speaker": "Watson", "text": "why?"}, {"speaker": "Holmes", "text": "elementary"}]}] * 3
    answer = ana.post(f"/projects/{ana.project}/paste", data={"text": json.dumps(rows), "name": "cases"})
    assert answer.status_code == 303
    work()
    with reading() as session:
        file = session.scalars(select(SourceFile)).one()
    assert not file.is_mapping_confirmed
    assert "Watson" in get(ana, f"/files/{file.id}")
    form = {"shape": "messages", "messages": "dialog", "speaker": ["Watson", "Holmes"], "role": ["user", "assistant"]}
    assert ana.post(f"/files/{file.id}/mapping", data=form).status_code == 303
    work()
    assert "elementary" in get(ana, f"/projects/{ana.project}/data")


def test_hostile_text_is_shown_as_text(ana):
    rows = [{"question": text or "empty", "answer": "<img src=x onerror=alert(1)>"} for text in NAUGHTY]
    rows[0]["<b>column"] = "x"
    path = FIXTURES.parent / "naughty.jsonl"
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    name = '<script>alert("x")</script>"\r\n.jsonl'
    answer = ana.post(f"/projects/{ana.project}/files", files={"file": ("a.jsonl", lines)})
    assert answer.status_code == 303
    ana.post(f"/projects/{ana.project}/paste", data={"text": path.name + " x", "name": name})
    work()
    with reading() as session:
        files = session.scalars(select(SourceFile)).all()
    urls = [f"/projects/{ana.project}/rows?page={n}" for n in range(1, 7)]
    urls += [f"/projects/{ana.project}/clean", f"/projects/{ana.project}/data?q=%27%20OR%201%3D1--"]
    urls += [f"/projects/{ana.project}/clean/step?name=unicode"] + [f"/files/{f.id}" for f in files]
    for url in urls:
        page = get(ana, url)
        assert "<img src=x" not in page
        assert "<script>alert" not in page
        assert "<b>column" not in page


def test_names_are_made_harmless(ana):
    long = "x" * 300
    for sent, kept in {
        "../../etc/passwd": "passwd",
        "C:\\x\\a.csv": "a.csv",
        "a\r\nb.csv": "ab.csv",
        f"{long}.csv": f"{long[:196]}.csv",
    }.items():
        metadata = f"filename {base64.b64encode(sent.encode()).decode()}"
        answer = ana.post(
            f"/uploads?project_id={ana.project}",
            headers={"Tus-Resumable": "1.0.0", "Upload-Length": "5", "Upload-Metadata": metadata},
        )
        assert answer.status_code == 201
        with reading() as session:
            assert session.get(Upload, answer.headers["location"].rsplit("/", 1)[1]).filename == kept


def test_downloads_are_attachments(ana):
    bring(ana, FIXTURES / "messy_made" / "utf8.csv")
    post(ana, f"/projects/{ana.project}/paste", text="question,answer\n=1+1,@home\n+2,-3\n", name="formulas.csv")
    work()
    version = post(ana, f"/projects/{ana.project}/versions")
    work()
    answer = ana.get(f"{version}/download?format=spreadsheet")
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "'=1+1,'@home" in answer.text
    assert answer.content.startswith(b"\xef\xbb\xbfsplit,"), "Excel reads the accents as UTF-8"
    assert not ana.get(f"{version}/download?format=csv").content.startswith(b"\xef")
    assert ",=1+1,@home" in ana.get(f"{version}/download?format=csv").text


def test_lists_take_a_constant_number_of_queries(ana, monkeypatch):
    from sqlalchemy import event

    from app.core.db import get_engine

    def queries(url: str) -> int:
        seen = []
        event.listen(get_engine(), "before_cursor_execute", listener := lambda *a: seen.append(a[2]))
        get(ana, url)
        event.remove(get_engine(), "before_cursor_execute", listener)
        return len(seen)

    bring(ana, FIXTURES / "messy_made" / "utf8.csv")
    one = queries(f"/projects/{ana.project}/data")
    for number in range(4):
        post(ana, f"/projects/{ana.project}/paste", text=f"question,answer\nwhat is {number}?,it is {number}\n")
    work()
    assert queries(f"/projects/{ana.project}/data") == one


def test_a_step_out_of_bounds_is_said_at_its_field(ana):
    bring(ana, FIXTURES / "messy_made" / "utf8.csv")
    answer = ana.post(
        f"/projects/{ana.project}/clean/steps",
        data={"step": "length", "is_full": "1", "shortest": "-4", "longest": "100"},
    )
    assert answer.status_code == 422
    assert answer.headers["hx-push-url"] == f"/projects/{ana.project}/clean/step?name=length"
    assert 'aria-invalid="true"' in answer.text
    assert 'value="-4"' in answer.text
    with reading() as session:
        assert session.scalars(select(CleaningPlan)).one().steps == []


def test_the_mapping_says_what_fits_and_fixes_with_one_click(ana, tmp_path):
    turns = [[("user", "a"), ("user", "b"), ("assistant", "c")]] * 3 + [[("user", "alone")]]
    path = tmp_path / "chats.jsonl"
    lines = [{"messages": [{"role": r, "content": c} for r, c in chat]} for chat in turns]
    path.write_text("\n".join(map(json.dumps, lines)))
    file_id = bring(ana, path)
    page = get(ana, f"/files/{file_id}")
    assert "75 % of 4 rows fit" in page
    assert "Conversations without an answer" in page
    assert "alone" in page
    post(ana, f"/files/{file_id}/repairs", code="turn.same_role", repair="last")
    with reading() as session:
        assert session.get(SourceFile, file_id).mapping["repairs"] == {"turn.same_role": "last"}
    refused = ana.post(f"/files/{file_id}/repairs", data={"code": "turn.no_assistant", "repair": "join"})
    assert refused.status_code == 422
    refused = ana.post(f"/files/{file_id}/repairs", data={"code": "turn.same_role", "repair": "out"})
    assert "No row fits this mapping" in refused.text, "a fix that leaves no row is an error"


def test_preferences_go_through_mapping_cleaning_and_freezing(ana):
    file_id = bring(ana, FIXTURES / "format_examples" / "preference_sharegpt.json")
    page = get(ana, f"/files/{file_id}")
    assert "a better and a worse answer" in page
    assert "Better than" in page
    form = {"shape": "preference", "messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    post(ana, f"/files/{file_id}/mapping", **form)
    work()
    post(ana, f"/projects/{ana.project}/clean/steps", step="whitespace")
    work()
    version = post(ana, f"/projects/{ana.project}/versions")
    work()
    lines = [json.loads(line) for line in get(ana, f"{version}/download").splitlines()]
    source = json.loads((FIXTURES / "format_examples" / "preference_sharegpt.json").read_text())
    assert len(lines) == len(source) == 12
    assert {line["rejected"][0]["content"].split()[0] for line in lines} == {
        row["rejected"]["value"].split()[0] for row in source
    }
    assert all(line["messages"][-1]["content"] == line["chosen"][-1]["content"] for line in lines)


def test_messages_that_answer_each_other_are_joined_on_request(ana, tmp_path):
    rows = [
        {"message_id": "1", "parent_id": None, "role": "prompter", "text": "Hi there"},
        {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "Hello"},
        {"message_id": "3", "parent_id": "2", "role": "prompter", "text": "Bye"},
    ]
    path = tmp_path / "oasst.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    file_id = bring(ana, path)
    assert "Messages that answer each other" in get(ana, f"/files/{file_id}")
    post(ana, f"/files/{file_id}/detections", format="tree")
    work()
    page = get(ana, f"/files/{file_id}")
    assert "100 % of 1 rows fit" in page
    assert "Conversations that end without an answer (1)" in page


def test_open_fixes_are_said_before_it_is_ready(ana):
    bring(ana, FIXTURES / "messy_made" / "ragged.csv")
    page = get(ana, f"/projects/{ana.project}/data")
    assert "Ready to train" not in page
    badge = page.split('id="data-state"')[1].split("</span>")[0]
    assert "Look at the mapping" in badge or "open" in badge
    assert 'href="/' in badge


def test_a_fix_that_leaves_nothing_to_find_can_be_taken_back(ana):
    file_id = bring(ana, FIXTURES / "messy_made" / "ragged.csv")
    assert "A quote that is never closed (1)" in get(ana, f"/files/{file_id}")
    post(ana, f"/files/{file_id}/reading", open_quotes="repair")
    work()
    page = get(ana, f"/files/{file_id}")
    assert "A quote that is never closed (1)" not in page
    assert "Take it back" in page
    post(ana, f"/files/{file_id}/reading", open_quotes=re.search(r'name="open_quotes" value="(\w+)"', page)[1])
    work()
    page = get(ana, f"/files/{file_id}")
    assert "A quote that is never closed (1)" in page
    assert "Take it back" not in page
