"""Counts by a real tokenizer against counting each row alone."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.datasets.browsing import counting
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
