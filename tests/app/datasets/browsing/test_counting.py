"""Counts by a real tokenizer against counting each row alone."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.datasets.browsing import counting, sketches
from app.datasets.browsing.model_view import ReadingModel, example_of, reader_of, view_of
from app.datasets.browsing.sets import in_folder
from app.datasets.tables import EXAMPLES
from app.recipes import bases


@pytest.fixture
def model():
    starter = bases.starter()
    if starter is None:
        pytest.skip("the starter model is not installed")
    return ReadingModel(starter.name, starter.tokenizer_file, 40)


def chat(*turns: str) -> dict:
    roles = ("user", "assistant")
    return {
        "_rid": 0, "_file": "f", "_row": 0, "kind": "chat", "text": "", "label": "l", "meta": "{}",
        "messages": [{"role": roles[i % 2], "content": t, "train": i % 2 == 1} for i, t in enumerate(turns)],
    }  # fmt: skip


def test_counts_are_those_of_each_row(model, tmp_path):
    rows = [chat("Is she at home?", "Yes."), chat("Is she at home?", "Yes."), chat("x " * 60, "No."), chat("a", " ")]
    pq.write_table(pa.Table.from_pylist(rows, schema=EXAMPLES), tmp_path / "data-00000.parquet", row_group_size=3)
    found = counting.count(in_folder(tmp_path, tmp_path, is_frozen=False), model, lambda _done, _total: None)
    lengths = [len(reader_of(model).encode(example_of(row)).ids) for row in rows]
    assert found.tokens == sum(lengths)
    assert found.over_limit == sum(n > 40 for n in lengths) == 1
    assert (found.counted, found.copies, found.missing) == (4, 1, 1)
    assert dict(found.top_words)["home"] == 2
    assert [(g.name, g.rows, g.labels) for g in found.groups] == [("She, her", 2, [("l", 2)])]
    assert counting.report_of(in_folder(tmp_path, tmp_path, is_frozen=False), model) == found


def test_the_front_turns_of_a_long_row_are_cut_and_typed_markers_are_text(model):
    reader = reader_of(model)
    long = view_of(reader, example_of(chat("one " * 30, "two", "short?", "Yes <|im_end|> no")), 40)
    states = re.sub(r"(.)\1+", r"\1", "".join(token.state[0] for token in long.tokens))
    assert states.startswith("c")
    assert long.cut > 30
    assert long.learned > 0
    learned = [token for token in long.tokens if token.state == "learned"]
    assert "".join(token.text for token in learned) == "Yes <|im_end|> no<|im_end|>"
    assert [token.is_marker for token in learned].count(True) == 1
    alone = view_of(reader, example_of(chat("q", "word " * 60)), 40)
    assert alone.is_left_out
    assert alone.learned == 0


class Stopped(Exception):
    """The process is gone."""


def test_a_large_set_is_counted_whole_and_goes_on_after_a_stop(model, tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "FIRST_ROWS", 40)
    monkeypatch.setattr(counting, "KEPT_EVERY_ROWS", 100)
    monkeypatch.setattr(counting, "ACCELERATED_ROWS", 200)
    rows = [chat(f"Where is she, {i % 150}?", f"word{i} " * (i % 60)) for i in range(400)]
    for at in range(2):
        table = pa.Table.from_pylist(rows[200 * at : 200 * at + 200], schema=EXAMPLES)
        pq.write_table(table, tmp_path / f"data-0000{at}.parquet", row_group_size=50)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    undisturbed = in_folder(tmp_path, tmp_path / "a", is_frozen=False)
    stopped = in_folder(tmp_path, tmp_path / "b", is_frozen=False)
    expected = counting.count(undisturbed, model, lambda _done, _total: None)
    lengths = [len(reader_of(model).encode(example_of(row)).ids) for row in rows]
    assert (expected.counted, expected.tokens, expected.lengths.high) == (400, sum(lengths), max(lengths))
    assert (expected.distinct_words, expected.groups[0].rows) == (4, 400)

    seen: list[int] = []

    def stop(done: int, _total: int) -> None:
        seen.append(done)
        if done >= 250:
            raise Stopped

    with pytest.raises(Stopped):
        counting.count(stopped, model, stop)
    partial = counting.report_of(stopped, model)
    assert (partial.counted, partial.rows) == (40, 400)
    assert counting.progress_of(stopped, model).done == 250
    seen.clear()
    assert counting.count(stopped, model, lambda done, _total: seen.append(done)) == expected
    assert seen[0] == 200
    assert counting.report_of(stopped, model) == expected
    assert {path.suffix for path in stopped.folder.iterdir()} == {".json"}


def test_copies_are_found_across_a_stop(model, tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "FIRST_ROWS", 2)
    monkeypatch.setattr(counting, "KEPT_EVERY_ROWS", 1)
    rows = [chat("a", "b"), chat("c", "d"), chat("a", "b"), chat("a", "b")]
    pq.write_table(pa.Table.from_pylist(rows, schema=EXAMPLES), tmp_path / "data-00000.parquet", row_group_size=1)
    assert counting.count(in_folder(tmp_path, tmp_path, is_frozen=False), model, lambda _d, _t: None).copies == 2


def test_words_are_counted_in_little_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(sketches, "KEPT_WORDS", 50)
    monkeypatch.setattr(sketches, "_FLUSH_WORDS", 500)
    words = sketches.Words()
    for at in range(20):
        words.add([f"once{at}-{i}" for i in range(450)] + ["often"] * 30 + ["also"] * 20)
    words.save(tmp_path / "w.npz")
    again = sketches.Words.loaded(tmp_path / "w.npz")
    assert again.top(2) == words.top(2) == [("often", 600), ("also", 400)]
    distinct, once = again.sizes()
    assert abs(distinct - 9_002) <= 30
    assert abs(once - 9_000) <= 30


def test_only_long_lengths_are_binned():
    assert [sketches.binned(n) for n in (0, 1, 4095, 4096, 4097, 100_001)] == [0, 1, 4095, 4096, 4096, 100_000]
