"""The working set: the same for any processes and batches, whole after a kill, with a trace of every row."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.datasets import freezing, preparing
from app.datasets.columnar import mapped
from app.datasets.freezing import freeze, is_intact, manifest_id
from app.datasets.importing import import_file
from app.datasets.looking import layout
from app.datasets.mapping import Mapping, apply
from app.datasets.options import ReadOptions
from app.datasets.overrides import like_key
from app.datasets.plan import Override, Plan, PlannedFile
from app.datasets.preparing import prepare
from app.datasets.steps.batches import examples_of, of_examples, of_table, table_of
from app.datasets.steps.contract import ChosenStep
from app.datasets.steps.copies import content_key
from app.datasets.tables import EXAMPLES, decoded, iterate, parts
from app.datasets.trying import preview
from tests.conftest import wait_for

STEPS = ("unicode", "whitespace", "missing", "exact", "length")


def quiet(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


def file_of(folder: Path, number: int, lines: list[dict]) -> PlannedFile:
    source, out = folder / f"{number}.jsonl", folder / f"rows-{number}"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = import_file(source, source.name, out, ReadOptions(), quiet)
    return PlannedFile(
        file_id=f"f{number}", filename=source.name, sha256="ab" * 32, rows=report.rows, rows_dir=str(out),
        mapping=Mapping(prompt="{q}", answer="{a}"),
    )  # fmt: skip


def line(number: int) -> dict:
    """One of five kinds of row; every sixth is a copy of an earlier one."""
    same = number - 5 if number % 6 == 5 else number
    answer = ["bell\x07", "two  blanks", "cafÃ©", "", "n/a"][same % 6]
    return {"q": f"question {same}", "a": answer if answer in ("", "n/a") else f"{answer} {same}", "extra": same % 3}


def plan_of(folder: Path, counts: tuple[int, ...] = (70, 50, 40), steps: tuple[str, ...] = STEPS) -> Plan:
    starts = [sum(counts[:i]) for i in range(len(counts))]
    files = [
        file_of(folder, number, [line(start + i) for i in range(count)])
        for number, (start, count) in enumerate(zip(starts, counts, strict=True))
    ]
    return Plan(files=files, steps=[ChosenStep(name=name) for name in steps])


def rows_of(folder: Path) -> list[dict]:
    return [row for batch in iterate(parts(folder, "data-")) for row in batch]


def without_work(report: object) -> dict:
    return report.model_dump(mode="json")  # type: ignore[attr-defined,no-any-return]


def test_the_same_for_any_processes_and_batches(tmp_path, monkeypatch):
    plan = plan_of(tmp_path)
    one = prepare(plan, tmp_path / "one", quiet)
    monkeypatch.setattr(preparing, "ALONE_ROWS", 0)
    other = prepare(plan, tmp_path / "other", quiet, processes=2, batch_rows=7)
    assert without_work(one) == without_work(other)
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "other")
    for name in ("trace.parquet", "sample.parquet"):
        assert pq.read_table(tmp_path / "one" / name) == pq.read_table(tmp_path / "other" / name)
    assert len(list((tmp_path / "one").glob("data-*.parquet"))) == 3


def test_every_row_is_accounted_for_after_every_step(tmp_path):
    plan = plan_of(tmp_path)
    report = prepare(plan, tmp_path / "set", quiet)
    trace = pq.read_table(tmp_path / "set" / "trace.parquet").to_pylist()
    status = Counter(row["status"] for row in trace)
    assert [row["_rid"] for row in trace] == list(range(160))
    assert (status["kept"], status["out"], status["unmapped"]) == (report.rows, report.out, report.unmapped)
    assert [row["_rid"] for row in trace if row["status"] == "kept"] == [
        row["_rid"] for row in rows_of(tmp_path / "set")
    ]
    before = report.rows_in - report.unmapped
    for step in (s for s in report.steps if s.is_applied):
        assert step.rows_in == before
        assert step.removed == sum(row["step"] == step.name for row in trace)
        before -= step.removed
    assert before == report.rows
    gone = [row for row in trace if row["status"] == "out"]
    assert all(row["code"] and row["code"] in row["codes"].split() for row in gone)
    kept = {row["_rid"] for row in trace if row["status"] == "kept"}
    copies = [row for row in gone if row["code"] == "out.exact"]
    assert copies
    assert all(row["of"] in kept and row["of"] < row["_rid"] for row in copies)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["fine", " two  blanks", "", "n/a", "cafÃ©", "x" * 60]), min_size=1, max_size=40))
def test_in_is_kept_and_out_for_any_rows(tmp_path_factory, answers):
    folder = tmp_path_factory.mktemp("any")
    plan = Plan(
        files=[file_of(folder, 0, [{"q": "same?", "a": answer} for answer in answers])],
        steps=[*(ChosenStep(name=name) for name in STEPS[:-1]), ChosenStep(name="length", params={"longest": 50})],
    )
    report = prepare(plan, folder / "set", quiet)
    assert len(answers) == report.rows_in == report.rows + report.out + report.unmapped
    left = {" ".join(a.replace("Ã©", "é").split()) for a in answers} - {"", "n/a", "x" * 60}
    assert report.rows == len(left)


def test_finished_shards_outlive_a_kill(tmp_path):
    plan = plan_of(tmp_path)
    whole = prepare(plan, tmp_path / "whole", quiet)
    order = tmp_path / "plan.json"
    order.write_text(plan.model_dump_json())
    # It stops itself after its second shard: there it waits for the kill.
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom app.datasets.plan import Plan\n"
        "from app.datasets.preparing import prepare\nplan = Plan.model_validate_json(Path(sys.argv[1]).read_text())\n"
        "def tell(done, total):\n    if done == 60: os.kill(os.getpid(), signal.SIGSTOP)\n"
        "prepare(plan, Path(sys.argv[2]), tell)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(order), str(tmp_path / "set")])
    work = tmp_path / f".work-{plan.digest()}" / "looked"
    try:
        wait_for(lambda: os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT), "it has stopped", 60)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not (tmp_path / "set").exists()
    done = {path.name: path.stat().st_ino for path in work.glob("0*")}
    assert sorted(done) == ["00000", "00001"]
    seen: list[dict[str, int]] = []

    def watch(_done: int, _total: int) -> None:
        seen.append({path.name: path.stat().st_ino for path in work.glob("0*")})

    assert without_work(prepare(plan, tmp_path / "set", watch)) == without_work(whole)
    assert all(seen[0][name] == inode for name, inode in done.items()), "what was finished is not done again"
    assert rows_of(tmp_path / "set") == rows_of(tmp_path / "whole")
    assert not list(tmp_path.glob(".work-*"))


def test_a_version_is_the_same_for_any_processes_and_after_a_kill(tmp_path, monkeypatch):
    plan = plan_of(tmp_path)
    one = freeze(plan, tmp_path / "one", quiet, parent="ab")
    prepare(plan, tmp_path / "ready", quiet)
    monkeypatch.setattr(preparing, "ALONE_ROWS", 0)
    monkeypatch.setattr(freezing, "ALONE_ROWS", 0)
    other = freeze(plan, tmp_path / "other", quiet, parent="ab", processes=2)
    assert manifest_id(one) == manifest_id(other)
    assert one["parent"] == "ab"
    order = tmp_path / "plan.json"
    order.write_text(plan.model_dump_json())
    # It stops itself when its first shard is packed: there it waits for the kill.
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom app.datasets.plan import Plan\n"
        "from app.datasets.freezing import freeze\nplan = Plan.model_validate_json(Path(sys.argv[1]).read_text())\n"
        "out = Path(sys.argv[2])\npacked = out.with_name('.tmp-killed') / 'packed-00000.json'\n"
        "def tell(done, total):\n    if packed.exists(): os.kill(os.getpid(), signal.SIGSTOP)\n"
        "freeze(plan, out, tell, parent='ab', ready=Path(sys.argv[3]))\n"
    )
    target = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", program, str(order), str(target), str(tmp_path / "ready")])
    try:
        wait_for(lambda: os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT), "it has stopped", 60)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not target.exists(), "no half version"
    packed = (tmp_path / ".tmp-killed" / "data-00000.parquet").stat().st_ino
    assert manifest_id(freeze(plan, target, quiet, parent="ab")) == manifest_id(one)
    assert (target / "data-00000.parquet").stat().st_ino == packed, "what was finished is not done again"
    assert is_intact(target)
    left = {path.name for path in target.iterdir()}
    assert left == {path.name for path in (tmp_path / "one").iterdir()}
    assert not [name for name in left if name.startswith((".", "packed", "work"))]


@pytest.mark.parametrize(
    "mapping",
    [
        Mapping(prompt="{q}", answer="{a}"),
        Mapping(prompt="{q}\n\n{n}", answer="{a}", system="  {s} "),
        Mapping(shape="label", prompt="{q}", answer="{s}", label="{s}"),
        Mapping(shape="text", text="{a}"),
        Mapping(shape="text", text="{q}: {missing}"),
        Mapping(prompt="{n}", answer="{deep}", label="s"),
        Mapping(shape="messages", messages="turns"),
    ],
)
def test_mapping_whole_columns_is_mapping_row_by_row(tmp_path, mapping):
    rows = [
        {"q": "one", "a": "fine", "n": 7, "s": "kind", "deep": {"text": "inside"}, "empty": ""},
        {"q": " ", "a": "", "n": None, "s": " ", "deep": [1, 2]},
        {
            "q": "\u00a0",
            "a": "left",
            "turns": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        },
        {"q": "no answer", "a": None, "n": 0.5, "s": "", "more": {"k": [1, None]}, "deep": "x"},
    ]
    planned = file_of(tmp_path, 0, rows)
    table = pq.read_table(parts(Path(planned.rows_dir))[0])
    found = mapped(table, mapping, "f0", 100)
    expected = []
    codes = Counter[str]()
    for place, values in enumerate(decoded(table)):
        values.pop("_row")
        one = apply(values, mapping)
        codes.update(one.codes)
        if one.example is not None:
            expected.append((100 + place, one.example))
    assert list(zip(found.batch.rids.tolist(), examples_of(found.batch), strict=True)) == expected
    assert {code: len(places) for code, places in found.codes.items()} == dict(codes)
    assert examples_of(of_table(table_of(found.batch, EXAMPLES))) == [example for _rid, example in expected]


def test_turns_keep_what_they_carry_through_a_file():
    message = {"role": "assistant", "content": "a", "train": False, "name": "bot", "weight": 0.0}
    chat = {"kind": "chat", "messages": [{"role": "user", "content": "q", "train": True}, message], "text": "",
            "chosen": [message], "rejected": [{"role": "assistant", "content": "b", "train": True}], "label": "l",
            "meta": {"k": [1]}}  # fmt: skip
    text = {"kind": "text", "messages": [], "text": "plain", "chosen": [], "rejected": [], "label": "", "meta": {}}
    again = of_table(table_of(of_examples([text, chat, text]), EXAMPLES))
    assert examples_of(again) == [text, chat, text]


def test_overrides_hold_for_the_row_its_kind_and_the_reason(tmp_path):
    plan = plan_of(tmp_path, (60,), ("missing", "exact"))
    plain = prepare(plan, tmp_path / "plain", quiet)
    row = {"kind": "chat", "label": "", "meta": {}, "text": "",
           "messages": [{"role": "user", "content": "question 4", "train": True},
                        {"role": "assistant", "content": "n/a", "train": True}]}  # fmt: skip

    def left(*overrides: Override) -> int:
        report = prepare(plan.model_copy(update={"overrides": list(overrides)}), tmp_path / "set", quiet)
        return report.rows - plain.rows

    of_row = Override(scope="row", step="missing", key=f"{content_key(row):016x}")
    assert left(of_row) == 1
    assert left(Override(scope="row", step="exact", key=of_row.key)) == 0, "another step's word"
    alike = sum(line(i)["a"] == "n/a" for i in range(60))
    assert left(Override(scope="like", step="missing", key=f"{like_key(row):016x}")) == alike > 1
    copies = next(step for step in plain.steps if step.name == "exact").removed
    assert left(Override(scope="code", step="exact", code="out.exact")) == copies > 1


def test_a_marking_step_changes_nothing_and_is_seen(tmp_path):
    plan = plan_of(tmp_path, (60,), ())
    plan.steps = [ChosenStep(name="missing", mode="mark"), ChosenStep(name="whitespace", mode="mark")]
    report = prepare(plan, tmp_path / "set", quiet)
    assert report.rows == 60
    missing = next(step for step in report.steps if step.name == "missing")
    assert (missing.removed, missing.marked) == (0, missing.codes["out.missing"])
    marked = [r for r in pq.read_table(tmp_path / "set" / "trace.parquet").to_pylist() if r["codes"]]
    assert {row["status"] for row in marked} == {"kept"}
    assert any("two  blanks" in row["messages"][1]["content"] for row in rows_of(tmp_path / "set"))


def test_a_preview_looks_at_the_sample_and_says_how_sure_it_is(tmp_path):
    plan = plan_of(tmp_path, (60,), ("unicode",))
    prepare(plan, tmp_path / "set", quiet)
    found = preview(plan, tmp_path / "set", 6000, ChosenStep(name="missing"))
    share = sum(line(i)["a"] in ("", "n/a") for i in range(60)) / 60
    assert found.sampled == 60
    assert found.removed == round(share * 6000)
    assert found.low < found.removed < found.high
    assert not preview(plan, tmp_path / "set", 60_000, ChosenStep(name="near")).is_known
    assert len(layout(plan)) == 1
