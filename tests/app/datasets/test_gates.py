"""What is told apart in whole columns must be what looking at every text tells."""

import random

import ftfy
import ftfy.badness
import polars as pl
import pytest
import xxhash

from app.datasets.cleaning import ChosenStep, run
from app.datasets.freezing import canonical, freeze, learned
from app.datasets.statistics import word_counts
from app.datasets.steps.quality import QualityParams, _findings, findings
from app.datasets.steps.rewriting import MOJIBAKE, repaired
from app.datasets.tables import page, parts
from tests.app.datasets.test_cleaning import chat
from tests.app.datasets.test_freezing import FIXTURES, planned, quiet

# One character of each class that broken text is told by, and what stands around it.
_SIGNS = "".join(ftfy.badness.MOJIBAKE_CATEGORIES.values()) + "ÂÃÎÐØÙà√≈‚ĀвЂГўВРСβ€ΒΓΞΟā°×²³œŒ \n\x1c\u2003aZz1.½٣_"
_WORDS = ["the", "order", "#", "...", "1234567", "of", "shop", "unbelievably", "x" * 300, "...", "a", "kettle,", "\n"]


def test_the_gate_of_broken_text_misses_none():
    dice = random.Random(2)
    texts = ["".join(dice.choices(_SIGNS, k=dice.randrange(2, 9))) for _ in range(20_000)]
    texts += ["plain words", "naïve “quotes” – and a dash…", "日本語です。", "привет, мир"]
    bad = [any(map(ftfy.badness.is_bad, text.splitlines(keepends=True))) for text in texts]
    assert 2_000 < sum(bad) < 18_000
    through = pl.Series(texts).str.contains(MOJIBAKE).to_list()
    assert not [text for text, is_bad, is_in in zip(texts, bad, through, strict=True) if is_bad and not is_in]
    assert through[-4:] == [False] * 4


def test_what_hides_behind_a_control_character_is_repaired():
    found = run(ChosenStep(name="unicode"), [chat("Caf\x07Ã\x07©", "fine")])[0]
    assert found.example is not None
    assert found.example["messages"][0]["content"] == "Café"
    assert set(found.codes) == {"fix.control", "fix.mojibake"}


def test_signs_of_poor_quality_are_the_same_in_columns():
    dice, limits = random.Random(3), QualityParams()
    texts = []
    for _ in range(600):
        few = dice.sample(_WORDS, dice.randrange(2, 8))
        texts.append(dice.choice([" ", "\n", " \t"]).join(dice.choices(few, k=dice.randrange(50, 90))) + " end")
    column = pl.Series(texts)
    words = word_counts(column)
    assert words.tolist() == [len(text.split()) for text in texts]
    is_long = words >= limits.least_words
    kept = [text for text, is_in in zip(texts, is_long.tolist(), strict=True) if is_in]
    found = _findings(pl.Series(kept), words[is_long], limits)
    expected: dict[str, list[int]] = {}
    for place, text in enumerate(kept):
        for code in findings(text, limits):
            expected.setdefault(code, []).append(place)
    assert {code: sorted(places) for code, places in found.items() if places} == expected
    assert expected.keys() == {"q.letters", "q.symbols", "q.lines", "q.phrases"}


@pytest.mark.parametrize("name", ["sharegpt_tools.json", "preference_sharegpt.json"])
def test_the_content_hash_is_that_of_the_rows_one_by_one(tmp_path, name):
    manifest = freeze(planned(tmp_path, FIXTURES / "format_examples" / name), tmp_path / "v", quiet)
    rows = page(parts(tmp_path / "v", "data-"), 0, 1000)
    assert any(row["rejected"] or any(turn["role"] == "tool" for turn in row["messages"]) for row in rows)
    total = sum(xxhash.xxh3_128_intdigest(canonical([row["split"], *learned(row)])) for row in rows)
    assert manifest["content_hash"] == f"{total % 2**128:032x}"


def test_broken_text_is_repaired_as_ftfy_does():
    options = {"unescape_html": False, "uncurl_quotes": False, "fix_latin_ligatures": False, "fix_line_breaks": False}
    options |= {"fix_character_width": False, "remove_terminal_escapes": False, "remove_control_chars": False}
    dice = random.Random(5)
    texts = ["".join(dice.choices(_SIGNS, k=dice.randrange(2, 30))) for _ in range(3_000)]
    names = ("latin-1", "cp1252", "mac_roman", "cp1251")
    texts += [
        t.encode().decode(name, "replace") for t in ("Größe – “été”\nè\x85", "日本語", "naïve\n") for name in names
    ]
    # Of a long line only what stands near the broken letters is looked at.
    plain = " it keeps plain words, 12 of them, as they are;" * 4
    texts += [
        "".join((plain, one, plain, other, plain)) for one, other in zip(texts[:400], texts[400:800], strict=True)
    ]
    texts += [f"{plain}\x02{plain}Ã©{plain}", f"{plain}\x1a{plain}voilÃ {plain}Ã©{plain}", f"Ã quela{plain}\nÂ {plain}"]
    fixed = [ftfy.fix_text(text, normalization=None, **options) for text in texts]
    assert [repaired(text) for text in texts] == fixed
    assert sum(new != old for new, old in zip(fixed, texts, strict=True)) > 200
