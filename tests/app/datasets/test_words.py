"""The words of the Data pages: one name for one thing, nothing said twice, no sentence that points nowhere."""

import json
import re
from pathlib import Path

import pytest

from app.core.config import get_settings
from app.core.errors import TooLarge
from app.datasets import shown, uploads
from app.datasets.findings import Refused
from app.datasets.importing import import_file
from app.datasets.models import CleaningPlan, SourceFile
from app.datasets.options import ReadOptions
from app.datasets.reading import unpacking
from app.datasets.reports import PrepareReport, StepReport
from app.datasets.statistics import Statistics
from tests.app.datasets.test_pages import ana as ana  # the fixture
from tests.app.datasets.test_pages import bring, get


def test_what_cannot_be_read_is_said_in_whole_sentences(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{'a': 1, 'b'}\n" * 3)
    with pytest.raises(Refused) as refused:
        import_file(path, path.name, tmp_path / "rows-1", ReadOptions(), lambda done, total: None)
    assert "The first problem, at line 1: lines that are not JSON (" in refused.value.sentence
    assert not re.search(r"\. [a-z]", refused.value.sentence)


def test_one_limit_has_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_settings().upload_limit_bytes == unpacking.LIMIT_BYTES
    monkeypatch.setattr(uploads.projects, "get", lambda *_a, **_n: None)
    with pytest.raises(TooLarge, match="50 GB"):
        uploads.create(None, None, project_id="p", filename="a", size_bytes=unpacking.LIMIT_BYTES + 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("steps", "words", "count"),
    [
        ([], "Ready to train", 0),
        ([StepReport(name="unicode", is_applied=True, changed=3)], "Ready to train", 0),
        # Left open for good by many people, yet never silently.
        ([StepReport(name="profanity", is_applied=False, marked=3)], "decide", 1),
        (
            [
                StepReport(name="profanity", is_applied=False, marked=3),
                StepReport(name="unicode", is_applied=False, changed=2),
            ],
            "fixes",
            2,
        ),
    ],
)
def test_the_badge_counts_what_the_list_of_fixes_shows(steps: list[StepReport], words: str, count: int) -> None:
    report = PrepareReport(rows_in=9, rows=9, out=0, unmapped=0, steps=steps, statistics=Statistics(rows=9))
    plan = CleaningPlan(project_id="p", state="succeeded", report=report.model_dump(mode="json"))
    file = SourceFile(id="f", state="succeeded", is_mapping_confirmed=True)
    state = shown.state_of([file], plan)
    assert (state.words, state.count) == (words, count)
    assert count == len([card for card in shown.fix_cards(report) if not card.is_applied])


def test_a_file_names_its_rules_fields_and_roles_once(ana, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(20)]
    rows[1]["answer"] = ""
    rows[2]["id"] = 10**30  # type: ignore[assignment]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = get(ana, f"/files/{bring(ana, path)}")
    # Which field it is stands with the finding, not only behind a link.
    assert f"id: {10**30}" in page
    fit = page.split('id="mapping-fit"')[1].split("</section>")[0]
    assert fit.count("What is 1?") == 1, "the row that does not fit is shown twice"
    assert fit.count("What is 3?") == 1
    row = get(ana, f"/projects/{ana.project}/rows/1")
    assert '<span class="row-role">Question' in row
    assert '<span class="row-role">Answer' in row
    assert "Assistant</option>" not in row
