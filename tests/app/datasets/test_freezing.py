"""Splits without leaks, versions that can be made again, and nothing half made."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from app.datasets.cleaning import STEPS, ChosenStep
from app.datasets.findings import Refused
from app.datasets.freezing import freeze, is_intact, manifest_id
from app.datasets.importing import import_file
from app.datasets.options import ReadOptions
from app.datasets.plan import Plan, PlannedFile
from app.datasets.preparing import prepare
from app.datasets.splitting import SplitSettings, wanted_rows
from app.datasets.tables import count, page, parts, search

FIXTURES = Path(__file__).parents[2] / "fixtures"


def quiet(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


def planned(tmp_path: Path, source: Path, steps: list[str] | None = None, number: int = 0) -> Plan:
    out = tmp_path / f"rows-{number}-{source.stem}"
    report = import_file(source, source.name, out, ReadOptions(), quiet)
    file = PlannedFile(
        file_id=f"local{number}",
        filename=source.name,
        sha256="ab" * 32,
        rows=report.rows,
        rows_dir=str(out),
        mapping=report.detections[0].mapping,
    )
    return Plan(files=[file], steps=[ChosenStep(name=name) for name in steps or []])


def test_same_input_and_plan_give_the_same_id(tmp_path):
    source = FIXTURES / "messy_made" / "utf8.csv"
    one = freeze(planned(tmp_path, source, list(STEPS), 1), tmp_path / "v1", quiet)
    other = freeze(planned(tmp_path, source, list(STEPS), 2), tmp_path / "v2", quiet)
    assert manifest_id(one) == manifest_id(other)
    assert (tmp_path / "v1" / "manifest.json").read_bytes() == (tmp_path / "v2" / "manifest.json").read_bytes()
    changed = freeze(planned(tmp_path, source, ["unicode"], 3), tmp_path / "v3", quiet)
    assert manifest_id(changed) != manifest_id(one)


def test_a_version_holds_what_was_agreed(tmp_path):
    freeze(planned(tmp_path, FIXTURES / "messy_made" / "ragged.csv", list(STEPS)), tmp_path / "v", quiet)
    manifest = json.loads((tmp_path / "v" / "manifest.json").read_bytes())
    table = pq.read_table(tmp_path / "v" / "data-00000.parquet")
    assert table.schema.names == ["_rid", "split", "kind", "messages", "text", "chosen", "rejected", "meta"]
    assert str(table.schema.field("messages").type) == (
        "list<element: struct<role: string, content: string, train: bool, name: string, tool_calls: string, "
        "tool_call_id: string, weight: float>>"
    )
    rows = table.to_pylist()
    assert Counter(r["split"] for r in rows) == manifest["counts"]["splits"]
    counts = manifest["counts"]
    assert counts["rows_in"] == 300 == counts["rows"] + counts["out"] + counts["unmapped"]
    trace = pq.read_table(tmp_path / "v" / "trace.parquet").to_pylist()
    assert Counter(r["status"] for r in trace) == {"kept": counts["rows"], "out": counts["out"]}
    assert all(r["codes"] for r in trace if r["status"] != "kept"), "no row goes without a code"
    assert json.loads(rows[0]["meta"])["columns"]["id"] == "00000"
    assert manifest["split_report"]["leaks"] == 0
    assert is_intact(tmp_path / "v")
    shard = tmp_path / "v" / "data-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert not is_intact(tmp_path / "v")


def test_nothing_left_is_refused_and_leaves_no_folder(tmp_path):
    source = tmp_path / "a.csv"
    source.write_text("question,answer\n" + "".join(f"what is {i},\n" for i in range(5)))
    with pytest.raises(Refused, match="No row is left"):
        freeze(planned(tmp_path, source, ["missing"]), tmp_path / "v", quiet)
    assert not (tmp_path / "v").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_in_equals_kept_and_out_after_every_step(tmp_path):
    source = FIXTURES / "messy_made" / "missing_values.jsonl"
    for number, steps in enumerate([[], ["missing"], ["unicode", "whitespace"], list(STEPS)]):
        plan = planned(tmp_path, source, steps, number)
        report = prepare(plan, tmp_path / f"w{number}", quiet)
        assert report.rows_in == 200 == report.rows + report.out + report.unmapped
        assert {s.name for s in report.steps if s.is_applied} == set(steps)
        assert {s.name for s in report.steps} == set(STEPS), "steps not applied say what they would do"
    assert report.out == 90


def test_pages_and_search(tmp_path):
    import_file(FIXTURES / "messy_made" / "utf8.csv", "utf8.csv", tmp_path / "r", ReadOptions(), quiet)
    paths = parts(tmp_path / "r")
    assert count(paths) == 600
    rows = page(paths, 590, 100)
    assert [r["id"] for r in rows] == [f"{i:05d}" for i in range(590, 600)]
    hits, total = search(paths, "PYTHON", 0, 5)
    everything = page(paths, 0, 600)
    wanted = [i for i, r in enumerate(everything) if any("python" in str(v).lower() for v in r.values())]
    assert total == len(wanted) > 5
    assert [i for i, _row in hits] == wanted[:5]
    assert everything[wanted[0]] == hits[0][1]


def test_child_obeys_limits(tmp_path):
    """A file that wants more memory than allowed ends as a sentence or a dead child, never in the parent."""
    source = tmp_path / "big.json"
    source.write_bytes(b'{"a": [' + b"[1,2,3]," * 8_000_000 + b"0]}")
    order = {
        "verb": "import",
        "source": str(source),
        "filename": "big.json",
        "out_dir": str(tmp_path / "out"),
        "limits": {"memory_bytes": 1200 * 2**20, "cpu_s": 60},
    }
    child = subprocess.run(
        [sys.executable, "-m", "app.datasets.child"], input=json.dumps(order).encode() + b"\n", capture_output=True
    )
    assert child.returncode != 0 or b"refused" in child.stdout
    assert not (tmp_path / "out").exists()


def test_child_says_progress_and_result(tmp_path):
    order = {
        "verb": "import",
        "source": str(FIXTURES / "messy_made" / "ragged.csv"),
        "filename": "ragged.csv",
        "out_dir": str(tmp_path / "out"),
    }
    child = subprocess.run(
        [sys.executable, "-m", "app.datasets.child"], input=json.dumps(order).encode() + b"\n", capture_output=True
    )
    last = json.loads(child.stdout.splitlines()[-1])
    assert child.returncode == 0, child.stderr
    assert (last["result"]["rows"], last["result"]["quarantined"]) == (300, 1)


@pytest.mark.parametrize(
    ("total", "validation", "test", "wanted"),
    [
        (1000, 20, 30, (500, 200, 300)),
        (55, 10, 15, (41, 6, 8)),
        (55, 5, 5, (45, 5, 5)),
        (100_000, 5, 5, (96_000, 2000, 2000)),
        (10, 5, 0, (9, 1, 0)),
    ],
)
def test_the_shares_that_were_asked_for_are_given(total, validation, test, wanted):
    found = wanted_rows(total, SplitSettings(validation_percent=validation, test_percent=test))
    assert (found["train"], found["validation"], found["test"]) == wanted
