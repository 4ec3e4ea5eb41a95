"""The exact search behind the proof of a split: every near pair, none missed, whatever the filters leave out."""

import random

import numpy as np
import pytest

from app.datasets.near.overlap import near_pairs
from app.datasets.near.spill import spill
from tests.app.datasets.near.test_near import jaccard, written


@pytest.mark.parametrize("least", [0.5, 0.7])
def test_every_near_pair_is_found(tmp_path, least):
    draw = random.Random(5)
    words = [f"w{number}" for number in range(40)]
    texts = [" ".join(draw.choices(words, k=draw.randrange(1, 60))) for _ in range(150)]
    for text in texts[:100]:
        changed = text.split()
        for _ in range(draw.randrange(0, 1 + len(changed) // 6)):
            changed[draw.randrange(len(changed))] = draw.choice(words)
        texts.append(" ".join(changed[draw.randrange(0, 3) :]) or text)
    spilled = spill(written(tmp_path, texts), tmp_path / "scratch", map, "example", lambda _done, _total: None)
    queries = np.arange(0, len(texts), 3)
    found = near_pairs(spilled, queries, least)
    wanted = {
        (row, number)
        for number, query in enumerate(queries.tolist())
        for row in range(len(texts))
        if row != query and jaccard(texts[row], texts[query]) >= least
    }
    assert set(zip(found.rows.tolist(), found.queries.tolist(), strict=True)) == wanted
    assert len(found.rows) == len(wanted), "each pair once"
    assert len(wanted) > 20, "there is something to find"
    again = near_pairs(spilled, queries, least, workers=2)
    assert [a.tolist() for a in again] == [a.tolist() for a in found], "the same from two processes"
