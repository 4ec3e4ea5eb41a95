"""The index and its answers against a plain look at every row; both layouts of a set; a scan in another process."""

import json
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.datasets.browsing import background, index, scanning, table
from app.datasets.browsing.questions import Question, question_of
from app.datasets.browsing.sets import RowSet, in_folder, read
from app.datasets.edits import EditLayer
from app.datasets.tables import EXAMPLES
from tests.conftest import wait_for

NAUGHTY = json.loads((Path(__file__).parents[3] / "fixtures" / "naughty_strings" / "blns.json").read_text())
WORDS = ["soup", "Salt", "pepper", "ÄPFEL", "leek\nstew", "two  blanks", "日本", "", "card", "\ttab"]


def examples(count: int = 300) -> list[dict]:
    pick = random.Random(4)
    found = []
    for i in range(count):
        text = " ".join(pick.choices(WORDS, k=pick.randint(0, 9))) or "x"
        turns = [{"role": "user", "content": text, "train": False}]
        if i % 3 == 0:
            turns.insert(0, {"role": "system", "content": "Be kind", "train": False})
        turns.append({"role": "assistant", "content": NAUGHTY[i % len(NAUGHTY)], "train": True})
        row = {"_rid": 2 * i, "_file": "fa" if i < 200 else "fb", "_row": i, "label": f"l{i % 4}", "meta": "{}"}
        if i % 7 == 0:
            row |= {"kind": "text", "messages": [], "text": text}
        else:
            row |= {"kind": "chat", "messages": turns, "text": ""}
        found.append(row)
    return found


def texts(row: dict) -> list[str]:
    return [row["text"]] if row["kind"] == "text" else [m["content"] for m in row["messages"]]


@pytest.fixture
def rows(tmp_path) -> RowSet:
    made = pa.Table.from_pylist(examples(), schema=EXAMPLES)
    pq.write_table(made, tmp_path / "examples.parquet", row_group_size=64)
    trace = [
        {"_rid": i, "status": "kept" if i % 2 == 0 else "out", "codes": "fix.space" if i % 10 == 0 else "",
         "changed": 2 if i % 8 == 0 else 0, "quality": float(i % 50)}
        for i in range(600)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(trace).cast(TRACE), tmp_path / "trace.parquet", row_group_size=100)
    (tmp_path / "browsing").mkdir()
    return in_folder(tmp_path, tmp_path / "browsing", is_frozen=False, sources={"fa": "a.csv", "fb": "b.csv"})


TRACE = pa.schema(
    [
        ("_rid", pa.int64()),
        ("status", pa.string()),
        ("codes", pa.string()),
        ("changed", pa.uint32()),
        ("quality", pa.float32()),
    ]
)


def answer(rows: RowSet, **asked) -> list[int]:
    folder, state = background.ensure_answer(rows, question_of(asked), "", None)
    assert state.is_done
    return scanning.every_number(folder).tolist()


def test_cells_and_lengths_are_those_of_the_rows(rows):
    meta = index.build(rows, lambda _done, _total: None)
    every = range(300)
    cells = table.cells_of(rows, every, meta, ("label", "words", "turns", "source"))
    for number, (row, cell) in enumerate(zip(examples(), cells, strict=True)):
        spoken = [m for m in row["messages"] if m["role"] != "system"]
        first = row["text"] if row["kind"] == "text" else spoken[0]["content"]
        assert cell["first"].rstrip("…") == " ↵ ".join(first[:120].splitlines())[: len(cell["first"].rstrip("…"))]
        assert cell["turns"] == str(len(spoken)), number
        assert cell["source"] == ("a.csv" if number < 200 else "b.csv")
        # Blanks of other scripts join words here: lengths are counted on the bytes.
        if all(text.isascii() for text in texts(row)) and not any(
            c in t for t in texts(row) for c in "\x1c\x1d\x1e\x1f"
        ):
            assert cell["words"] == str(sum(len(t.split()) for t in texts(row))), texts(row)
    assert sum(meta.first.counts) == sum(meta.words.counts) == 300
    assert {c.value: c.count for c in meta.sources} == {"fa": 200, "fb": 100}
    assert table.cells_of(rows, [250, 3], meta, ()) == [
        {"first": cells[250]["first"], "second": cells[250]["second"]},
        {"first": cells[3]["first"], "second": cells[3]["second"]},
    ]


@pytest.mark.parametrize("term", ["salt", "äpfel", "LEEK\nstew", "日", "be KIND", "<script", "l3", "'", "\\"])
def test_search_finds_what_a_plain_look_finds(rows, term):
    found = [
        i for i, row in enumerate(examples())
        if any(term.casefold() in text.casefold() for text in [*texts(row), row["label"]])
    ]  # fmt: skip
    assert answer(rows, q=term) == found
    assert found, "a term that is there"


def test_filters_hold_together_and_orders_are_stable(rows):
    every = examples()
    words = [sum(len(t.split()) for t in texts(row)) for row in every]
    assert answer(rows, label="l1", source="fb") == [i for i in range(200, 300) if i % 4 == 1]
    assert answer(rows, code="changed:whitespace") == [i for i in range(300) if (2 * i) % 8 == 0]
    assert answer(rows, code="fix.space") == [i for i in range(300) if (2 * i) % 10 == 0]
    assert answer(rows, label="unheard of") == []
    long = answer(rows, least="6", sort="-length")
    lengths = table.cells_of(rows, long, index.meta_of(rows), ("words",))
    numbers = [int(cell["words"].replace(",", "")) for cell in lengths]
    assert numbers == sorted(numbers, reverse=True)
    assert min(numbers) >= 6
    assert abs(len(long) - sum(n >= 6 for n in words)) < 5
    scored = answer(rows, sort="score")
    assert [(2 * i) % 50 for i in scored] == sorted((2 * i) % 50 for i in range(300))
    assert len(set(scored)) == 300
    assert answer(rows, q="salt", sort="-row") == answer(rows, q="salt")[::-1]


def test_parts_and_one_file_give_the_same_answers(rows, tmp_path):
    folder = tmp_path / "parts"
    (folder / "browsing").mkdir(parents=True)
    made = pa.Table.from_pylist(examples(), schema=EXAMPLES)
    for part in range(3):
        pq.write_table(made.slice(part * 100, 100), folder / f"data-{part:05d}.parquet", row_group_size=37)
    shutil.copy(tmp_path / "trace.parquet", folder)
    other = in_folder(folder, folder / "browsing", is_frozen=False)
    for asked in ({"q": "salt"}, {"least": "4", "sort": "length"}, {"code": "fix.space"}):
        assert answer(other, **asked) == answer(rows, **asked)
    assert read(other, [299, 0, 150]) == read(rows, [299, 0, 150])


def test_a_question_that_makes_no_sense_is_left_out_not_refused():
    question = question_of({"q": "x", "least": "many", "sort": "sideways", "page": "3", "state": "deleted"})
    assert question.parts() == {"q": "x", "state": "deleted"}
    assert question_of({"q": "a b&c"}).url(least=3) == "q=a+b%26c&least=3"


def test_big_sets_are_answered_by_another_process(rows, monkeypatch):
    monkeypatch.setattr(background, "AT_ONCE_ROWS", 10)
    expected = [i for i, row in enumerate(examples()) if any("salt" in t.casefold() for t in texts(row))]
    folder, state = background.ensure_answer(rows, Question(q="salt"), "", None)
    assert not state.is_done
    wait_for(lambda: background.ensure_answer(rows, Question(q="salt"), "", None)[1].is_done, "the answer", 60)
    assert scanning.every_number(folder).tolist() == expected
    assert index.meta_of(rows) is not None, "the index was made on the way"


def test_a_scan_that_is_stopped_says_so_and_begins_anew(rows):
    index.build(rows, lambda _done, _total: None)
    folder = scanning.answers_dir(rows) / "halfway"
    state = scanning.scan(rows, Question(q="salt"), EditLayer(), folder, lambda: True)
    assert not state.is_done
    assert 0 < state.looked_at < 300
    whole = scanning.scan(rows, Question(q="salt"), EditLayer(), folder)
    assert whole.is_done
    assert whole.found == len(answer(rows, q="salt"))
