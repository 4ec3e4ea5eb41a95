"""Near copies: found, verified, and never a row gone without a twin that stays."""

import csv
import random
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.datasets.near.edges import Edges, find
from app.datasets.near.shingles import shingles
from app.datasets.near.stars import cover, passing
from app.datasets.near.texts import of_table

SAMPLES = Path(__file__).parents[4] / "app" / "datasets" / "samples"


def written(folder: Path, texts: list[str]) -> list[Path]:
    path = folder / "rows.parquet"
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, row_group_size=500)
    return [path]


def grams(text: str) -> set[str]:
    """An independent reading of the specification: word 3-grams in lower case, plain letters only."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {" ".join(words[i : i + 3]) for i in range(len(words) - 2)} or {" ".join(words) or text}


def jaccard(one: str, other: str) -> float:
    a, b = grams(one), grams(other)
    return len(a & b) / len(a | b)


@pytest.fixture(scope="module")
def planted() -> tuple[list[str], list[tuple[int, int]]]:
    """Rows of 12 to 120 drawn words, and 400 of them again with 4 % of the words edited."""
    draw = random.Random(7)
    words = [f"w{n}" for n in range(2000)]
    texts = [" ".join(draw.choices(words, k=draw.randint(12, 120))) for _ in range(2000)]
    pairs = []
    for _ in range(400):
        source = draw.randrange(2000)
        copy = texts[source].split()
        for _ in range(max(1, len(copy) // 25)):
            copy[draw.randrange(len(copy))] = draw.choice(words)
        pairs.append((source, len(texts)))
        texts.append(" ".join(copy))
    return texts, pairs


def test_planted_copies_are_found_and_nobody_goes_without_a_twin_that_stays(planted, tmp_path):
    texts, pairs = planted
    edges, _ = find(written(tmp_path, texts), tmp_path / "spill")
    found = {(a, b): j for a, b, j in zip(edges.a.tolist(), edges.b.tolist(), edges.j.tolist(), strict=True)}
    for (a, b), j in found.items():
        assert j == pytest.approx(jaccard(texts[a], texts[b]), abs=1e-6)
    near = [pair for pair in pairs if jaccard(texts[pair[0]], texts[pair[1]]) >= 0.7]
    assert len(near) > 300
    assert sum(pair in found for pair in near) >= 0.99 * len(near)
    for threshold in (0.7, 0.8, 0.95):
        gone = cover(edges, passing(edges, threshold))
        out = set(gone.out.tolist())
        assert len(out) == len(gone.out) > 0
        for row, twin in zip(gone.out.tolist(), gone.twin.tolist(), strict=True):
            assert twin not in out
            assert jaccard(texts[row], texts[twin]) >= threshold - 1e-6


def test_two_workers_find_what_one_finds(planted, tmp_path):
    texts, _ = planted
    paths = written(tmp_path, texts)
    one, _ = find(paths, tmp_path / "one", workers=1)
    two, _ = find(paths, tmp_path / "two", workers=2)
    assert len(one.a) > 300
    for left, right in zip(one, two, strict=True):
        assert np.array_equal(left, right)


def test_short_rows_are_no_copies_of_each_other(tmp_path):
    texts = [f"word{n}" for n in range(300)] + ["", "!!!", "???", "yes", "no", "Yes.", "ok then", "then ok"]
    sets = shingles(pa.array(texts))
    alone = [frozenset(sets.values[a:b].tolist()) for a, b in zip(sets.offsets, sets.offsets[1:], strict=False)]
    assert all(len(found) == 1 for found in alone), "one hash each, and never an empty set"
    assert len(set(alone)) == len(texts) - 1, "only “yes” and “Yes.” are the same"
    edges, _ = find(written(tmp_path, texts), tmp_path / "spill")
    assert [(texts[a], texts[b]) for a, b in zip(edges.a, edges.b, strict=True)] == [("yes", "Yes.")]
    assert not len(cover(edges, passing(edges, 0.7)).out), "under 8 shingles only exact copies go"


def test_support_messages_keep_what_differs_in_a_key_word(tmp_path):
    with (SAMPLES / "support-messages.csv").open(newline="") as source:
        texts = [row[0] for row in csv.reader(source)][1:]
    edges, _ = find(written(tmp_path, texts), tmp_path / "spill")
    gone = cover(edges, passing(edges, 0.8))
    assert len(gone.out) < 0.04 * len(texts)
    assert all(edges.sizes[gone.out] >= 8)


def test_scripts_without_spaces_are_compared_by_character(tmp_path):
    chinese = "机器学习是人工智能的一个分支它研究计算机怎样模拟人类的学习行为以获取新的知识或技能"
    thai = "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอนหรือวรรณยุกต์เช่นเดียวกับภาษาจีนและออกเสียง"
    texts = [chinese, chinese[:20] + "机" + chinese[21:], thai, thai[:-2] + "กข", "Größe und Übermut tut selten gut"]
    edges, _ = find(written(tmp_path, texts), tmp_path / "spill")
    assert list(zip(edges.a.tolist(), edges.b.tolist(), strict=True)) == [(0, 1), (2, 3)]
    sizes = shingles(pa.array(["日本語テキスト", "Größe und Übermut tut", "GRÖSSE und größe"])).sizes()
    assert sizes.tolist() == [5, 2, 1]


def test_system_prompts_do_not_make_rows_alike():
    def turn(role: str, content: str) -> dict:
        return {"role": role, "content": content, "train": True}

    rows = [
        {"messages": [turn("system", "Be kind."), turn("user", "A?"), turn("assistant", "B"), turn("user", "C?")]},
        {"messages": [], "text": "plain"},
        {"messages": [turn("user", "D?"), turn("assistant", "E"), turn("user", "F?"), turn("assistant", "G")]},
    ]
    table = pa.Table.from_pylist([{"text": "", **row} for row in rows])
    assert of_table(table, "example").to_pylist() == ["A?\nB\nC?", "plain", "D?\nE\nF?\nG"]
    assert of_table(table, "prompt").to_pylist() == ["A?", "", "D?\nE\nF?"]
    assert of_table(table, "answer").to_pylist() == ["B", "", "G"]


def test_crowded_buckets_are_reported_and_still_covered(tmp_path, monkeypatch):
    monkeypatch.setattr("app.datasets.near.edges.LARGE_BUCKET", 30)
    base = " ".join(f"w{n}" for n in range(60))
    texts = [f"{base} tail{n}" for n in range(100)]
    edges, _ = find(written(tmp_path, texts), tmp_path / "spill")
    assert max(edges.large_buckets) > 90
    gone = cover(edges, passing(edges, 0.8))
    assert len(gone.out) == 99
    assert set(gone.twin.tolist()) == {0}


@settings(max_examples=100, deadline=None)
@given(
    st.sets(st.tuples(st.integers(0, 25), st.integers(0, 25)).filter(lambda p: p[0] < p[1]), max_size=80),
    st.data(),
)
def test_the_cover_is_the_greedy_one(pairs, data):
    """In order of priority each row stays, unless a near one already does: checked row by row."""
    ordered = sorted(pairs)
    j = [data.draw(st.sampled_from([0.7, 0.75, 0.85, 1.0])) for _ in ordered]
    priority = np.array(data.draw(st.lists(st.integers(0, 3), min_size=26, max_size=26)), float)
    edges = Edges(
        np.array([a for a, _ in ordered], np.int64), np.array([b for _, b in ordered], np.int64),
        np.array(j, np.float32), np.full(26, 40, np.uint32), [],
    )  # fmt: skip
    gone = cover(edges, passing(edges, 0.75), priority)
    near = {pair: value for pair, value in zip(ordered, j, strict=True) if value >= 0.75}
    kept: list[int] = []
    wanted = {}
    for row in sorted(range(26), key=lambda r: (-priority[r], r)):
        stays = [k for k in kept if (min(k, row), max(k, row)) in near]
        if stays:
            wanted[row] = max(near[(min(k, row), max(k, row))] for k in stays)
        else:
            kept.append(row)
    assert gone.out.tolist() == sorted(wanted)
    assert gone.j.tolist() == pytest.approx([wanted[row] for row in sorted(wanted)])
    assert set(gone.twin.tolist()) <= set(kept)
