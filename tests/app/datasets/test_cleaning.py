"""What each step repairs and removes, on real damage and on texts made to break things."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.datasets.cleaning import CODES, STEPS, ChosenStep, content_key, in_order, run, start
from app.datasets.mapping import Mapping, apply

FIXTURES = Path(__file__).parents[2] / "fixtures"
NAUGHTY = json.loads((FIXTURES / "naughty_strings" / "blns.json").read_text())


def chat(question: str, answer: str, label: str = "") -> dict:
    messages = [
        {"role": "user", "content": question, "train": True},
        {"role": "assistant", "content": answer, "train": True},
    ]
    return {"kind": "chat", "messages": messages, "text": "", "label": label, "meta": {}}


def plain(text: str) -> dict:
    return {"kind": "text", "messages": [], "text": text, "label": "", "meta": {}}


def cleaned(name: str, text: str, **params) -> str:
    return run(ChosenStep(name=name, params=params), [plain(text)])[0].example["text"]


def test_mojibake_is_repaired():
    rows = [json.loads(line) for line in (FIXTURES / "messy_made" / "mojibake.jsonl").open()]
    right = sum(cleaned("unicode", row["broken"]) == row["expected"] for row in rows)
    assert right >= 372, "of 392; the measured figure of ftfy on this file"


def test_clean_text_of_many_languages_is_left_alone():
    lines = (FIXTURES / "messy_made" / "utf8.csv").read_text().splitlines()
    assert all(cleaned("unicode", line) == line for line in lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x00b\x07c", "abc"),
        ("e\u0301", "é"),
        ("\ufeffstart", "start"),
        ("evil\u202etxt", "eviltxt"),
        ("👩\u200d🚀 ok", "👩\u200d🚀 ok"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
)
def test_invisible_characters(text, expected):
    assert cleaned("unicode", text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a   b  ", "a b"),
        ("a\n\n\n\nb", "a\n\nb"),
        ("a \nb\t\n", "a\nb"),
        ("a\u00a0\u00a0b", "a b"),
        ("x\n```\nif  a:\n    b\n\n\n\n```\ny", "x\n```\nif  a:\n    b\n\n\n\n```\ny"),
        ("def f():\n    return  1", "def f():\n    return 1"),
    ],
)
def test_whitespace(text, expected):
    assert cleaned("whitespace", text) == expected


def test_missing_values_of_the_messy_file():
    rows = [json.loads(line) for line in (FIXTURES / "messy_made" / "missing_values.jsonl").open()]
    mapping = Mapping(prompt="{prompt}", answer="{completion}")
    out = [o.codes for o in run(ChosenStep(name="missing"), [apply(row, mapping).example for row in rows])]
    # 23 empty, 22 null, 22 N/A, 22 of blanks and a zero-width space.
    assert out.count(("out.missing",)) == 89


def test_a_label_that_reads_like_nothing_stays():
    rows = [chat("is it there?", "none"), chat("is it there?", "none", label="none")]
    assert [o.example is None for o in run(ChosenStep(name="missing"), rows)] == [True, False]


def test_copies_name_the_row_that_stays():
    found = run(ChosenStep(name="exact"), [chat("a", "b"), chat("a", "c"), chat("a", "b")], rids=[3, 4, 9])
    assert [o.example is not None for o in found] == [True, True, False]
    assert found[2] == (None, ("out.exact",), 3)
    folded = run(ChosenStep(name="exact", params={"is_folded": True}), [chat("A!", "b"), chat("a", "B.")], [1, 2])
    assert folded[1].of == 1
    longest = run(
        ChosenStep(name="exact", params={"is_folded": True, "kept": "longest"}), [chat("a", "b"), chat("a!", "b")]
    )
    assert [o.of for o in longest] == [1, None]
    assert content_key(chat("ab", "c")) != content_key(chat("a", "bc"))


def test_length():
    rows = [chat("q", "ab"), chat("q" * 9, "abc"), chat("q", "abc")]
    found = run(ChosenStep(name="length", params={"shortest": 3, "longest": 10}), rows)
    assert [o.codes for o in found] == [("out.short",), ("out.long",), ()]


def test_steps_do_not_touch_what_they_are_given():
    example = chat("  a\x00  b ", "e\u0301  ")
    before = json.dumps(example)
    for name in STEPS:
        run(ChosenStep(name=name), [example])
    assert json.dumps(example) == before


@pytest.mark.parametrize("text", [*NAUGHTY, "\ud800 lone", "\r\r\n a \r"])
def test_naughty_strings_twice_is_once(text):
    for name in ("unicode", "whitespace"):
        once = cleaned(name, text)
        assert cleaned(name, once) == once


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters()), st.text(" \t\n`~a\u00a0\u0301", max_size=30))
def test_rewriting_twice_is_once(text, blanks):
    for name in ("unicode", "whitespace"):
        for candidate in (text, blanks, text + blanks):
            once = cleaned(name, candidate)
            assert cleaned(name, once) == once


def test_every_code_has_words_and_order_is_the_catalogues():
    assert [s.name for s in in_order([ChosenStep(name="length"), ChosenStep(name="unicode")])] == ["unicode", "length"]
    assert {"fix.mojibake", "out.missing", "out.exact", "out.long"} <= set(CODES)
    with pytest.raises(ValueError, match="not known here"):
        start(ChosenStep(name="exact", version=9))
