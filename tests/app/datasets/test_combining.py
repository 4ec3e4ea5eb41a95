"""Versions made of versions: no leak, nothing lost without a number, the same again; and compared row by row."""

import io
import json
from collections import Counter
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sqlalchemy import select

from app.core.db import reading, transaction
from app.core.errors import Conflict, Forbidden, Invalid, NotFound
from app.datasets import service, versions
from app.datasets.combining import card, downloads
from app.datasets.combining import made as made_of
from app.datasets.combining import service as combining
from app.datasets.combining.comparing import compare
from app.datasets.combining.contract import Combination, Parent
from app.datasets.combining.differences import rows as differing
from app.datasets.combining.writing import combine
from app.datasets.freezing import freeze, is_intact, manifest_id
from app.datasets.importing import import_file
from app.datasets.models import CleaningPlan, DatasetVersion, VersionComparison
from app.datasets.options import ReadOptions
from app.datasets.plan import Plan, PlannedFile
from app.datasets.splitting import SplitSettings
from app.datasets.tables import iterate, parts
from worker.tasks import datasets as tasks


def quiet(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


class Made:
    """A version's folder, made in this process, and its manifest."""

    def __init__(self, folder: Path, number: int, manifest: dict) -> None:
        self.folder, self.number, self.manifest = folder, number, manifest
        self.parent = Parent(
            version_id=folder.name, folder=str(folder), number=number, manifest_sha256=manifest_id(manifest)
        )

    @property
    def rows(self) -> list[dict]:
        return [row for batch in iterate(parts(self.folder, "data-")) for row in batch]

    @property
    def questions(self) -> list[str]:
        return [row["messages"][0]["content"] for row in self.rows]

    @property
    def sides(self) -> dict[str, str]:
        return dict(zip(self.questions, [row["split"] for row in self.rows], strict=True))


def frozen(tmp_path: Path, number: int, rows: list[dict], seed: int = 1, name: str = "rows") -> Made:
    source = tmp_path / f"{number}" / name
    source.parent.mkdir()
    source.write_text("\n".join(map(json.dumps, rows)))
    report = import_file(source, name, tmp_path / f"rows-{number}", ReadOptions(), quiet)
    file = PlannedFile(
        file_id=f"file{number}", filename=name, sha256=f"{number:064x}", rows=report.rows,
        rows_dir=str(tmp_path / f"rows-{number}"), mapping=report.detections[0].mapping,
    )  # fmt: skip
    split = SplitSettings(validation_percent=10, test_percent=10, validation_rows_min=0, seed=seed)
    folder = tmp_path / f"v{number}"
    return Made(folder, number, freeze(Plan(files=[file], split=split), folder, quiet))


def combined(tmp_path: Path, operation: str, *parents: Made, weights=None, **more) -> Made:
    number = len(list(tmp_path.glob("v*"))) + 1
    of = [p.parent.model_copy(update={"weight": w}) for p, w in zip(parents, weights or [1] * 9, strict=False)]
    folder = tmp_path / f"v{number}"
    return Made(folder, number, combine(Combination(operation=operation, parents=of, **more), folder, quiet))


def pairs(name: str, numbers) -> list[dict]:
    return [{"question": f"{name} question {i}?", "answer": f"{name} answer {i}"} for i in numbers]


@pytest.fixture
def two(tmp_path) -> tuple[Made, Made]:
    """Two versions that share 40 rows, split by different seeds, so that they disagree about sides."""
    return (
        frozen(tmp_path, 1, pairs("x", range(100)), seed=1, name="one"),
        frozen(tmp_path, 2, pairs("x", range(60, 140)), seed=2, name="two"),
    )


def test_a_merge_keeps_equal_rows_once_and_leaks_nothing(tmp_path, two):
    merged = combined(tmp_path, "merge", *two)
    assert sorted(merged.questions) == sorted(f"x question {i}?" for i in range(140))
    assert len({row["_rid"] for row in merged.rows}) == 140
    disagreed = [q for q, side in two[1].sides.items() if two[0].sides.get(q, side) != side]
    assert disagreed, "the fixture is no test otherwise"
    for earlier in two:
        tested = [q for q, side in earlier.sides.items() if side == "test"]
        assert all(merged.sides[q] == "test" for q in tested), "no test row of a parent is trained on"
    counts = merged.manifest["counts"]
    assert (counts["rows_in"], counts["rows"], counts["out"], counts["codes"]) == (180, 140, 40, {"out.exact": 40})
    assert [p["manifest_sha256"] for p in merged.manifest["combination"]["parents"]] == [
        v.parent.manifest_sha256 for v in two
    ]
    trace = pq.read_table(merged.folder / "trace.parquet").to_pylist()
    assert Counter(t["version"] for t in trace) == {1: 100, 2: 40}
    assert is_intact(merged.folder)
    again = combined(tmp_path, "merge", *two)
    assert manifest_id(again.manifest) == manifest_id(merged.manifest)


def test_one_question_with_two_answers_stays_on_one_side(tmp_path):
    first = frozen(tmp_path, 1, pairs("x", range(60)), seed=1)
    second = frozen(tmp_path, 2, [{**row, "answer": "another"} for row in pairs("x", range(60))], seed=2)
    merged = combined(tmp_path, "merge", first, second)
    sides: dict[str, str] = {}
    for row, question in zip(merged.rows, merged.questions, strict=True):
        assert sides.setdefault(question, row["split"]) == row["split"]
    assert len(merged.rows) == 120
    assert merged.manifest["split_report"]["moved"] > 0


def test_a_sample_is_seeded_and_keeps_the_sides(tmp_path, two):
    drawn = {seed: combined(tmp_path, "sample", two[0], rows=50, seed=seed) for seed in (3, 4)}
    assert drawn[3].manifest["counts"]["splits"] == {"train": 40, "validation": 5, "test": 5}
    assert drawn[3].sides.items() <= two[0].sides.items()
    assert drawn[3].questions != drawn[4].questions
    assert drawn[3].manifest["content_hash"] != drawn[4].manifest["content_hash"]


def test_rebalancing_by_label_cuts_and_repeats(tmp_path):
    rows = [
        {"text": f"where is my {n} number {i}", "label": n} for n, c in (("card", 90), ("fee", 30)) for i in range(c)
    ]
    version = frozen(tmp_path, 1, rows)
    least = combined(tmp_path, "rebalance", version, by="label")
    assert Counter(json.loads(r["meta"])["label"] for r in least.rows) == {"card": 30, "fee": 30}
    repeated = combined(tmp_path, "rebalance", version, by="label", at_most=60, is_repeated=True)
    assert Counter(json.loads(r["meta"])["label"] for r in repeated.rows) == {"card": 60, "fee": 60}
    assert len({r["_rid"] for r in repeated.rows}) == 120
    copies = Counter(repeated.questions)
    assert max(copies.values()) > 1
    assert all(copies[q] == 1 for q, side in repeated.sides.items() if side != "train")
    assert repeated.manifest["counts"]["repeated"] == 30


def test_a_mix_takes_training_rows_by_weight(tmp_path):
    first, second = frozen(tmp_path, 1, pairs("x", range(100))), frozen(tmp_path, 2, pairs("y", range(100)))
    mixed = combined(tmp_path, "mix", first, second, weights=[1, 3])
    names = Counter(q[0] for q, side in mixed.sides.items() if side == "train")
    assert (names["x"], names["y"]) == (27, 80)
    assert mixed.manifest["counts"]["splits"]["test"] == 20


def test_versions_are_compared_row_by_row(tmp_path):
    rows = pairs("x", range(60))
    old = frozen(tmp_path, 1, rows)
    changed = [*rows[:10], {**rows[10], "answer": "x answer ten"}, *rows[11:59], *pairs("new", range(2))]
    new = frozen(tmp_path, 2, changed)
    report = compare(old.folder, new.folder, tmp_path / "found", (60, 61), quiet)
    # The line that is gone and the first new one share a place in the source: they are one row that changed.
    assert (report.same, report.changed, report.added, report.removed) == (58, 2, 1, 0)
    folders = tmp_path / "found", old.folder, new.folder
    role, pieces = differing(*folders, "changed", 1)[0].diffs[0]
    assert role == "assistant"
    assert [(a, b) for kind, a, b in pieces if kind == "changed"] == [("10", "ten")]
    assert [text for _role, text in differing(*folders, "added", 1)[0].texts] == ["new question 1?", "new answer 1"]
    assert differing(*folders, "changed", 2) == []
    shifted = frozen(tmp_path, 3, [*pairs("first", range(1)), *rows])
    report = compare(old.folder, shifted.folder, tmp_path / "shifted", (60, 61), quiet)
    assert (report.same, report.changed, report.added, report.removed) == (60, 0, 1, 0), "rows may stand elsewhere"


# From here on as a person meets it: the gate, the queue, the pages' words.


@pytest.fixture
def version(place) -> DatasetVersion:
    with transaction() as session:
        text = "\n".join(map(json.dumps, pairs("x", range(100))))
        file = service.add_text(session, place.ada, project_id=place.project_id, text=text, name="one")
        file.licence, file.consent, file.obtained_on = "", "asked by *letter*", date(2024, 5, 6)
    tasks.import_file(file.id)
    with reading() as session:
        plan_id = session.scalar(select(CleaningPlan.id))
    tasks.prepare(plan_id)
    with transaction() as session:
        made = versions.freeze(session, place.ada, place.project_id)
    return built(made.id)


def built(version_id: str) -> DatasetVersion:
    tasks.freeze(version_id)
    with reading() as session:
        found = session.get(DatasetVersion, version_id)
    assert (found.state, found.error) == ("succeeded", "")
    return found


def test_from_a_version_to_another_and_what_is_between_them(place, version):
    with transaction() as session:
        made = combining.combine(session, place.ada, version.id, operation="sample", others=[], rows=40)
    sample = built(made.id)
    with transaction() as session:
        again = combining.combine(session, place.ada, version.id, operation="sample", others=[], rows=40)
        assert again.id == sample.id, "the same order, the same version"
        comparison = combining.compare(session, place.vera, version.id, sample.id)
    tasks.compare(comparison.id)
    with reading() as session:
        done = session.get(VersionComparison, comparison.id)
        report = combining.report_of(done)
        assert (report.same, report.removed, report.added) == (40, 60, 0)
        assert [f["filename"] for f in made_of.files_of(session, sample)] == ["one"]
        text = card.markdown(session, "Soup | plans", sample)
    assert text.startswith("# Soup \\| plans, version 2\n")
    assert "| one | 100 | paste | not stated | asked by \\*letter\\* | 2024-05-06 |" in text
    assert "no licence is stated for one" in text
    assert "were not searched for personal data" in text
    assert "- 100 rows in, 60 left out" in text
    assert len(b"".join(downloads.jsonl(sample)).splitlines()) == 40
    table = pq.read_table(io.BytesIO(b"".join(downloads.parquet(sample))))
    assert table.to_pylist() == [r for b in iterate(parts(versions.folder(sample), "data-")) for r in b]
    orders = [
        ({"operation": "merge", "others": []}, "at least one other"),
        ({"operation": "merge", "others": [(version.id, 1)]}, "chosen twice"),
        ({"operation": "sample", "others": []}, "how many rows"),
        ({"operation": "sample", "others": [(sample.id, 1)], "rows": 5}, "one version"),
        ({"operation": "sample", "others": [], "rows": 100}, "Choose fewer"),
        ({"operation": "rebalance", "others": []}, "no labels"),
    ]
    for order, sentence in orders:
        with transaction() as session, pytest.raises(Invalid, match=sentence):
            combining.combine(session, place.ada, version.id, **order)
    with transaction() as session, pytest.raises(Conflict, match="two different"):
        combining.compare(session, place.ada, version.id, version.id)
    with transaction() as session, pytest.raises(Forbidden):
        combining.combine(session, place.vera, version.id, operation="sample", others=[], rows=4)
    with transaction() as session, pytest.raises(NotFound):
        combining.compare(session, place.bob, version.id, sample.id)
