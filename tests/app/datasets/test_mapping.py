"""Which shape a file's rows have, and the examples that come of them."""

import json
from pathlib import Path

import pytest

from app.datasets.detect import detect
from app.datasets.mapping import Mapping, apply, render

FORMATS = Path(__file__).parents[2] / "fixtures" / "format_examples"


def numbered(rows: list[dict]) -> list[tuple[int, dict]]:
    return list(enumerate(rows, 1))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("alpaca.json", "alpaca"),
        ("alpaca_zh.json", "alpaca"),
        ("sharegpt_tools.json", "sharegpt"),
        ("kto_messages.json", "messages"),
        ("preference_sharegpt.json", "preference"),
    ],
)
def test_public_formats_are_found_and_every_row_maps(name, kind):
    rows = json.loads((FORMATS / name).read_text())
    best = detect(numbered(rows))[0]
    assert (best.format, best.share) == (kind, 1.0)
    for row in rows:
        example = apply(row, best.mapping).example
        assert example["messages"][-1]["role"] == "assistant"
        assert all(m["content"].strip() for m in example["messages"])


def test_preference_learns_the_chosen_answer():
    rows = json.loads((FORMATS / "preference_sharegpt.json").read_text())
    best = detect(numbered(rows))[0]
    assert apply(rows[0], best.mapping).example["messages"][-1]["content"] == rows[0]["chosen"]["value"]


@pytest.mark.parametrize(
    ("columns", "kind", "prompt", "answer"),
    [
        (("Question", "Answer"), "question", "{Question}", "{Answer}"),
        (("prompt", "completion"), "pair", "{prompt}", "{completion}"),
        (("User Query", "x", "response"), None, "", ""),
        (("article", "summary"), "pair", "{article}", "{summary}"),
    ],
)
def test_named_pairs(columns, kind, prompt, answer):
    rows = [{name: f"some words about {name} number {i} here" for name in columns} for i in range(20)]
    best = detect(numbered(rows))[0]
    if kind is None:
        assert best.format == "text", "no pair is claimed where the names say nothing"
    else:
        assert (best.format, best.mapping.prompt, best.mapping.answer) == (kind, prompt, answer)


def test_labels():
    rows = [{"text": f"where is my card number {i}", "category": ["lost", "late", "fees"][i % 3]} for i in range(60)]
    best = detect(numbered(rows))[0]
    assert best.format == "label"
    example = apply(rows[4], best.mapping).example
    assert [m["content"] for m in example["messages"]] == ["where is my card number 4", "late"]
    assert example["label"] == "late"


def test_share_and_misfits_are_told():
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 8
    rows += [{"messages": [{"role": "narrator", "content": "a"}]}, {"messages": "nothing"}]
    best = detect(numbered(rows))[0]
    assert best.share == 0.8
    assert best.misfits == [9, 10]


def test_turns_are_put_right_and_said():
    mapping = Mapping(shape="messages", messages="m")
    turns = [
        {"from": "gpt", "value": "hello"},
        {"from": "human", "value": "a"},
        {"from": "human", "value": "b"},
        {"from": "human", "value": " "},
        {"from": "gpt", "value": "c"},
    ]
    example, codes = apply({"m": turns, "id": 7}, mapping)
    assert [(m["role"], m["content"], m["train"]) for m in example["messages"]] == [
        ("assistant", "hello", False),
        ("user", "a\nb", True),
        ("assistant", "c", True),
    ]
    assert set(codes) == {"turn.same_role", "turn.empty", "turn.starts_with_assistant"}
    assert example["meta"] == {"id": 7}


def test_unusable_conversations_say_why():
    mapping = Mapping(shape="messages", messages="m")
    assert apply({"m": [{"role": "user", "content": "a"}]}, mapping) == (None, ("turn.no_assistant",))
    assert apply({"m": [{"role": "wizard", "content": "a"}]}, mapping) == (None, ("role.unknown",))
    assert apply({"m": None}, mapping) == (None, ("map.empty",))
    with_role = mapping.model_copy(update={"roles": {"wizard": "assistant"}})
    turns = [{"role": "user", "content": "a"}, {"role": "wizard", "content": "b"}]
    assert apply({"m": turns}, with_role).example is not None


def test_templates():
    values = {"a": "x", "b": None, "c d": 5}
    assert render("{a}\n\n{b}", values) == "x"
    assert render("{a}: {c d} {unknown} {a", values) == "x: 5 {unknown} {a"
    assert render("{b}", values) == ""
    assert render("{a}{a}", {"a": "{a}{c}"}) == "{a}{c}{a}{c}", "cells are never read as templates"


def test_json_in_a_cell_and_history():
    turns = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert apply({"m": turns}, Mapping(shape="messages", messages="m")).example["messages"][1]["content"] == "b"
    mapping = Mapping(prompt="{instruction}", answer="{output}", history="history", system="Be kind.")
    row = {"instruction": "q2", "output": "a2", "history": [["q1", "a1"]]}
    contents = [m["content"] for m in apply(row, mapping).example["messages"]]
    assert contents == ["Be kind.", "q1", "a1", "q2", "a2"]
