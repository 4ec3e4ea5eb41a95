"""Which shape a file's rows have, and the examples that come of them."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from app.datasets.detect import ASK_BELOW_SHARE, detect
from app.datasets.findings import Problem, Record
from app.datasets.mapping import Mapping, apply, is_usable, render
from app.datasets.threads import joined

FIXTURES = Path(__file__).parents[2] / "fixtures"


def numbered(rows: list[dict]) -> list[tuple[int, dict]]:
    return list(enumerate(rows, 1))


# Every kind of file that is out there: what it is taken for, how many rows it has, how many can be used, and why.
TABLE = [
    ("format_examples/alpaca.json", "alpaca", 12, 12, {}),
    ("format_examples/alpaca_zh.json", "alpaca", 12, 12, {}),
    ("format_examples/sharegpt_tools.json", "sharegpt", 12, 12, {}),
    ("format_examples/kto_messages.json", "rated", 12, 12, {}),
    ("format_examples/preference_sharegpt.json", "preference", 12, 12, {}),
    ("public_rows/gpteacher.jsonl", "alpaca", 6, 6, {}),
    ("public_rows/taskmaster.jsonl", "messages", 6, 6, {}),
    ("public_rows/taskmaster_raw.jsonl", "sharegpt", 3, 3, {}),
    ("public_rows/hh_rlhf.jsonl", "preference", 5, 4, {"turn.empty": 1, "turn.no_assistant": 1}),
    ("public_rows/medquad.jsonl", "question", 8, 6, {"map.no_answer": 2}),
    ("public_rows/scitldr.jsonl", "pair", 3, 3, {}),
    ("public_rows/banking77.csv", "label", 40, 40, {}),
    ("public_rows/legal_cuad.tsv", "label", 20, 20, {}),
    ("public_rows/chatterbot.jsonl", "question", 8, 8, {}),
]


@pytest.mark.parametrize(("name", "kind", "count", "usable", "codes"), TABLE)
def test_public_formats_are_found_and_every_row_has_a_verdict(name, kind, count, usable, codes):
    rows = rows_of(FIXTURES / name)
    best = detect(numbered(rows))[0]
    assert (best.format, len(rows)) == (kind, count)
    mapped = [apply(row, best.mapping) for row in rows]
    assert sum(map(is_usable, mapped)) == usable
    assert Counter(code for m in mapped for code in m.codes) == codes
    for found in mapped:
        assert found.example or found.codes, "no row goes without a reason"


def rows_of(path: Path) -> list[dict]:
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ","))


def preference(**row) -> dict:
    found = detect(numbered([row] * 3))[0]
    assert found.format == "preference"
    return apply(row, found.mapping).example


def said(turns: list[dict]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in turns]


def test_the_shapes_of_preferences_come_to_the_same():
    turns = [{"role": "user", "content": "Hot or cold?"}]
    good, bad = {"role": "assistant", "content": "Hot."}, {"role": "assistant", "content": "Cold."}
    shapes = [
        preference(prompt="Hot or cold?", chosen="Hot.", rejected="Cold."),
        preference(chosen=[*turns, good], rejected=[*turns, bad]),
        preference(prompt="Hot or cold?", chosen=[*turns, good], rejected=[*turns, bad], score=1),
        preference(prompt=turns, chosen=[good], rejected=[bad]),
        preference(
            chosen="\n\nHuman: Hot or cold?\n\nAssistant: Hot.", rejected="\n\nHuman: Hot or cold?\n\nAssistant: Cold."
        ),
        preference(conversations=[{"from": "human", "value": "Hot or cold?"}], chosen={"from": "gpt", "value": "Hot."},
                   rejected={"from": "gpt", "value": "Cold."}),
        preference(**{k: json.dumps(v) for k, v in {"chosen": [*turns, good], "rejected": [*turns, bad]}.items()}),
    ]  # fmt: skip
    for example in shapes:
        assert said(example["messages"]) == [("user", "Hot or cold?"), ("assistant", "Hot.")]
        assert said(example["chosen"]) == [("assistant", "Hot.")]
        assert said(example["rejected"]) == [("assistant", "Cold.")]
    assert shapes[2]["meta"] == {"score": 1}


def test_earlier_answers_of_a_pair_are_context_and_equal_pairs_are_out():
    turns = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    mapping = Mapping(shape="preference", chosen="x", rejected="y")
    example = apply({"x": turns + "good", "y": turns + "bad"}, mapping).example
    assert [m["train"] for m in example["messages"] if m["role"] == "assistant"] == [False, True]
    assert apply({"x": turns + "good", "y": turns + "good"}, mapping) == (None, ("pair.equal",))
    learn = mapping.model_copy(update={"repairs": {"pair.equal": "learn"}})
    kept = apply({"x": turns + "good", "y": turns + "good"}, learn)
    assert (kept.example["messages"][-1]["content"], kept.example["chosen"]) == ("good", [])
    assert kept.codes == ("pair.equal",)


def test_a_bad_answer_is_kept_and_never_learned():
    rows = [{"prompt": "a", "completion": "b", "label": good} for good in (True, False, True)]
    best = detect(numbered(rows))[0]
    assert (best.format, best.share) == ("rated", 1.0)
    good, bad = (apply(row, best.mapping).example for row in rows[:2])
    assert (said(good["chosen"]), good["rejected"], good["label"]) == ([("assistant", "b")], [], "good")
    assert (bad["chosen"], said(bad["rejected"]), bad["label"]) == ([], [("assistant", "b")], "bad")
    assert [m["train"] for m in bad["messages"]] == [True, False]
    assert apply({"prompt": "a", "completion": "b", "label": "perhaps"}, best.mapping).codes == ("rating.unknown",)
    classes = [{"question": f"Is {i} even?", "answer": "well", "label": i % 2} for i in range(40)]
    assert detect(numbered(classes))[0].format != "rated", "0 and 1 under “label” may be anything"


def test_parts_tools_names_and_weights_are_kept():
    call = {"id": "c1", "type": "function", "function": {"name": "cook", "arguments": "{}"}}
    row = {"messages": [
        {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0},
        {"role": "tool", "tool_call_id": "c1", "name": "cook", "content": "done"},
        {"role": "assistant", "content": "Ready.", "weight": 1},
    ]}  # fmt: skip
    example, codes = apply(row, detect(numbered([row]))[0].mapping)
    user, asks, tool, answer = example["messages"]
    assert (user["content"], codes) == ("Look: ", ("turn.part",))
    assert (json.loads(asks["tool_calls"]), asks["train"], asks["weight"]) == ([call], False, 0.0)
    assert (tool["name"], tool["tool_call_id"]) == ("cook", "c1")
    assert (answer["train"], answer["weight"]) == (True, 1.0)
    rows = rows_of(FIXTURES / "format_examples" / "sharegpt_tools.json")
    turns = apply(rows[0], detect(numbered(rows))[0].mapping).example["messages"]
    named = [json.loads(turn["tool_calls"])[0]["function"]["name"] for turn in turns if turn.get("tool_calls")]
    assert named == ["search_recipes"]


@pytest.mark.parametrize(
    ("code", "repair", "contents"),
    [
        ("turn.same_role", "last", ["hello", "b", "c"]),
        ("turn.same_role", "out", None),
        ("turn.empty", "out", None),
        ("turn.starts_with_assistant", "drop", ["a\nb", "c"]),
        ("turn.starts_with_assistant", "out", None),
    ],
)
def test_a_person_chooses_what_is_done_about_a_check(code, repair, contents):
    turns = [("assistant", "hello"), ("user", "a"), ("user", "b"), ("user", ""), ("assistant", "c")]
    row = {"m": [{"role": role, "content": content} for role, content in turns]}
    mapped = apply(row, Mapping(shape="messages", messages="m", repairs={code: repair}))
    assert code in mapped.codes
    assert (mapped.example and [m["content"] for m in mapped.example["messages"]]) == contents


def test_an_object_in_a_cell_is_a_row_too():
    rows = [{"id": i, "data": json.dumps({"prompt": f"question {i}", "completion": "answer"})} for i in range(5)]
    best = detect(numbered(rows))[0]
    assert (best.format, best.mapping.cell, best.mapping.prompt) == ("pair", "data", "{prompt}")
    example = apply(rows[2], best.mapping).example
    assert (said(example["messages"])[0], example["meta"]) == (("user", "question 2"), {"id": 2})


def test_questions_on_a_passage():
    row = {"context": "It rained.", "question": "Did it?", "answers": {"text": ["Yes", "yes"], "answer_start": [1, 1]}}
    best = detect(numbered([row] * 4))[0]
    assert (best.format, best.mapping.prompt) == ("question", "{context}\n\n{question}")
    assert said(apply(row, best.mapping).example["messages"])[1] == ("assistant", "Yes")
    nobody = {**row, "answers": {"text": [], "answer_start": []}}
    assert apply(nobody, best.mapping).codes == ("map.no_answer",)


def test_trees_of_replies():
    tree = {"prompt": {"text": "Hi", "role": "prompter", "replies": [
        {"text": "worse", "role": "assistant", "rank": 1, "replies": []},
        {"text": "better", "role": "assistant", "rank": 0, "replies": []}]}}  # fmt: skip
    best = detect(numbered([tree] * 3))[0]
    assert said(apply(tree, best.mapping).example["messages"]) == [("user", "Hi"), ("assistant", "better")]


def test_messages_that_answer_each_other_become_conversations():
    said_by = [
        ("1", None, "prompter", "Hi"), ("2", "1", "assistant", "Hello"), ("3", "2", "prompter", "More"),
        ("4", "3", "assistant", "Here"), ("5", "1", "assistant", "Hey"), ("6", "5", "prompter", "Unanswered"),
        ("7", "99", "assistant", "Orphan"), ("8", "9", "assistant", "Round"), ("9", "8", "assistant", "Round"),
    ]  # fmt: skip
    rows = [
        {"message_id": own, "parent_id": parent, "role": role, "text": text, "lang": "en"}
        for own, parent, role, text in said_by
    ]
    assert detect(numbered(rows))[0].format == "tree"
    found = list(joined(Record(n, row) for n, row in numbered(rows)))
    conversations = [[t["content"] for t in r.values["messages"]] for r in found if isinstance(r, Record)]
    assert conversations == [["Hi", "Hello", "More", "Here"], ["Hi", "Hey"]]
    assert {(p.row, p.code) for p in found if isinstance(p, Problem)} == {
        (6, "thread.unanswered"), (7, "thread.no_parent"), (8, "thread.no_parent"), (9, "thread.no_parent"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "kind", "prompt", "answer"),
    [
        (("Question", "Answer"), "question", "{Question}", "{Answer}"),
        (("prompt", "completion"), "pair", "{prompt}", "{completion}"),
        (("User Query", "x", "response"), None, "", ""),
        (("article", "summary"), "pair", "{article}", "{summary}"),
        (("Nr", "Frage", "Antwort"), "question", "{Frage}", "{Antwort}"),
        (("Customer asks", "We say"), "question", "{Customer asks}", "{We say}"),
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


def test_a_column_that_never_repeats_is_no_label_of_two_rows():
    rows = [{"Name": "Ana", "Said": "what time is it, please?"}, {"Name": "Bo", "Said": "where do you live now?"}]
    best = detect(numbered(rows))[0]
    assert best.format != "label"
    assert best.share * best.rank < ASK_BELOW_SHARE, "it is asked about"
    named = [{"intent": "time", "said": rows[0]["Said"]}, {"intent": "place", "said": rows[1]["Said"]}]
    assert detect(numbered(named))[0].format == "label"


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
