"""Rows longer than the model reads: marked, left out, cut, split, by a real tokenizer; every part knows its row."""

import json
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from app.core.errors import Conflict
from app.datasets import plans
from app.datasets.browsing import index, model_view, row
from app.datasets.browsing.model_view import ReadingModel, example_of, reader_of
from app.datasets.browsing.sets import in_folder
from app.datasets.cleaning import ChosenStep, run
from app.datasets.combining.card import rows_sentence
from app.datasets.findings import Refused
from app.datasets.freezing import freeze
from app.datasets.importing import import_file
from app.datasets.mapping import Mapping
from app.datasets.options import ReadOptions
from app.datasets.plan import Plan, PlannedFile
from app.datasets.preparing import prepare
from app.datasets.steps.catalogue import published
from app.datasets.steps.tokens import Measure, pieces, reading_of
from app.datasets.tables import input_rid, iterate, part_of, parts
from app.recipes import bases

LIMIT = 40
WORDS = ("The kettle boils. ", "She pours the tea slowly! ", "Is it raining? ", "We walk home along the river. ")


@pytest.fixture
def model() -> ReadingModel:
    starter = bases.starter()
    if starter is None or starter.tokenizer_file is None:
        pytest.skip("the starter model is not installed")
    return ReadingModel(starter.name, starter.tokenizer_file, LIMIT)


def quiet(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


def step(model: ReadingModel, **params) -> ChosenStep:
    return ChosenStep(name="tokens", params={**params, "reading": reading_of(model).model_dump()})


def text(sentences: int, seed: int = 0) -> str:
    paragraphs = [
        "".join(WORDS[(seed + p + s) % 4] for s in range(3)).strip() for p in range(-(-sentences // 3))
    ]  # fmt: skip
    return f"Story {seed}. " + "\n\n".join(paragraphs)


def plain(content: str) -> dict:
    return {"kind": "text", "messages": [], "chosen": [], "rejected": [], "text": content, "label": "", "meta": {}}


def chat(*turns: str, system: str = "") -> dict:
    roles = ("user", "assistant")
    messages = [{"role": "system", "content": system, "train": False}] if system else []
    messages += [{"role": roles[i % 2], "content": t, "train": i % 2 == 1} for i, t in enumerate(turns)]
    return {"kind": "chat", "messages": messages, "chosen": [], "rejected": [], "text": "", "label": "", "meta": {}}


def tokens(model: ReadingModel, example: dict) -> int:
    return len(reader_of(model).encode(example_of({"_rid": 0, **example})).ids)


@pytest.mark.parametrize(
    "content",
    [text(30), "one long line without an end " * 30, "x" * 900, "日本語の文章です。次の文です。" * 20, "🙂\n" * 200],
)
def test_every_piece_is_within_the_limit_and_nothing_is_lost(model, content):
    measure = Measure(reading_of(model), 0)
    found = pieces(content, measure.cuts(content))
    assert len(found) > 1
    assert all(tokens(model, plain(piece)) <= LIMIT for piece in found)
    assert "".join("".join(found).split()) == "".join(content.split())
    assert measure.cuts(found[0]) == []


def test_texts_end_at_a_paragraph_or_a_sentence(model):
    measure = Measure(reading_of(model), 0)
    content = text(30)
    found = pieces(content, measure.cuts(content))
    assert all(piece[-1] in ".!?" for piece in found)
    # Where a paragraph ends in the second half of what fits, no later sentence is taken.
    assert sum(content[content.index(piece) + len(piece) :].startswith("\n\n") for piece in found) >= len(found) - 2


@pytest.mark.parametrize(
    ("choice", "code", "is_left"),
    [("mark", "long.tokens", True), ("out", "out.tokens", False), ("cut", "fix.cut", True)],
)
def test_what_becomes_of_a_long_text(model, choice, code, is_left):
    short, long = plain("A short one."), plain(text(30))
    first, other = run(step(model, texts=choice), [short, long])
    assert (first.example, first.codes) == (short, ())
    assert other.codes == (code,)
    assert (other.example is not None) == is_left
    if choice == "cut":
        left = other.example["text"]
        assert tokens(model, other.example) <= LIMIT < tokens(model, long)
        assert long["text"].startswith(left)
        assert long["text"][len(left)].isspace()


def test_conversations_lose_whole_turns_and_no_answer_is_cut(model):
    long = chat("First? " * 8, "Yes, first. " * 4, "Second?", "Yes.", "Third?", "Yes, too.", system="Be brief.")
    hopeless = chat("Why?", "Because of this. " * 20)
    fine = chat("Why?", "So.")
    found = run(step(model, conversations="turns", texts="split", limit=60), [long, hopeless, fine])
    assert found[0].codes == ("fix.turns",)
    assert found[0].example["messages"] == [long["messages"][0], *long["messages"][3:]]
    assert tokens(model, found[0].example) <= 60
    assert (found[1].example, found[1].codes) == (None, ("out.tokens",))
    assert (found[2].example, found[2].codes) == (fine, ())
    again = run(step(model, conversations="turns", limit=60), [found[0].example])
    assert again[0].codes == ()


def test_the_gate_hides_no_row_that_is_too_long(model):
    measure = Measure(reading_of(model), 0)
    rows = [plain("é" * n) for n in range(1, 60)] + [chat(*["a"] * n) for n in range(2, 12, 2)]
    marked = [bool(outcome.codes) for outcome in run(step(model), rows)]
    assert marked == [tokens(model, example) > measure.limit for example in rows]
    assert True in marked
    assert False in marked


def planned(folder: Path, model: ReadingModel, **params) -> Plan:
    files = []
    for number, count in enumerate((7, 5)):
        source, out = folder / f"{number}.jsonl", folder / f"rows-{number}"
        lines = [{"t": text(30 if i % 3 == 0 else 2, seed=100 * number + i), "no": i} for i in range(count)]
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
        import_file(source, source.name, out, ReadOptions(), quiet)
        files.append(
            PlannedFile(
                file_id=f"f{number}", filename=source.name, sha256="ab" * 32, rows=count, rows_dir=str(out),
                mapping=Mapping(shape="text", text="{t}"),
            )
        )  # fmt: skip
    return Plan(files=files, steps=[step(model, **params)])


def rows_of(folder: Path) -> list[dict]:
    return [row for batch in iterate(parts(folder, "data-")) for row in batch]


def test_parts_know_their_row_in_the_set_the_trace_and_the_version(model, tmp_path):
    plan = planned(tmp_path, model, texts="split")
    report = prepare(plan, tmp_path / "set", quiet)
    rows = rows_of(tmp_path / "set")
    assert report.rows == len(rows) > report.rows_in == 12
    assert report.rows_in + report.made == report.rows + report.out + report.unmapped
    assert [s.made for s in report.steps if s.is_applied] == [report.made]
    by_input = defaultdict(list)
    for found in rows:
        by_input[input_rid(found["_rid"])].append(found)
    assert sorted(by_input) == list(range(12))
    assert len({found["_rid"] for found in rows}) == len(rows)
    trace = pq.read_table(tmp_path / "set" / "trace.parquet").to_pylist()
    assert [line["_rid"] for line in trace] == list(range(12))
    for number, made in by_input.items():
        is_split = trace[number]["codes"] == "fix.split"
        assert is_split == ((number if number < 7 else number - 7) % 3 == 0)
        assert [part_of(found["_rid"]) for found in made] == (list(range(1, len(made) + 1)) if is_split else [0])
        assert len({(found["_file"], found["_row"], found["meta"]) for found in made}) == 1
        whole = text(30 if is_split else 2, seed=100 * (number >= 7) + json.loads(made[0]["meta"])["no"])
        assert "".join(" ".join(found["text"] for found in made).split()) == "".join(whole.split())
    other = prepare(plan, tmp_path / "other", quiet, batch_rows=2)
    assert (other.model_dump(), rows_of(tmp_path / "other")) == (report.model_dump(), rows)

    shown = in_folder(tmp_path / "set", tmp_path / "set", is_frozen=False)
    marks = {choice.value: choice.count for choice in index.build(shown, quiet).marks}
    assert marks["fix.split"] == sum(part_of(found["_rid"]) > 0 for found in rows)
    assert row.row_at(shown, 2).part == 2

    manifest = freeze(plan, tmp_path / "v", quiet, ready=tmp_path / "set")
    assert manifest["counts"]["made"] == report.made
    assert rows_sentence(manifest["counts"]) == f"12 rows in, 0 left out, {report.made} more by splitting long ones"
    assert "tokenizer_file" not in json.dumps(manifest)
    sides = defaultdict(set)
    for found in (r for path in parts(tmp_path / "v", "data-") for r in pq.read_table(path).to_pylist()):
        meta = json.loads(found["meta"])
        assert meta.get("part", 0) == part_of(found["_rid"])
        sides[(meta["source"], meta["row"])].add(found["split"])
    assert all(len(found) == 1 for found in sides.values())


def test_the_step_takes_the_model_chosen_now_and_says_when_it_is_gone(place, model, monkeypatch, tmp_path):
    from app.core.db import transaction

    monkeypatch.setattr(model_view, "_source", [])
    with transaction() as session, pytest.raises(Conflict, match="base model"):
        plans.apply_steps(session, place.ada, place.project_id, ["tokens"])
    copied = tmp_path / "tokenizer.json"
    copied.write_bytes(model.tokenizer_file.read_bytes())
    monkeypatch.setattr(model_view, "_source", [lambda *_: ReadingModel("Copied", copied, 64)])
    with transaction() as session:
        plan = plans.apply_steps(session, place.ada, place.project_id, ["tokens"], {"texts": "out"})
        chosen = plans.chosen(plan)[0]
    assert chosen.params["reading"] | {"tokenizer_sha256": ""} == {
        "name": "Copied", "tokenizer_file": str(copied), "tokenizer_sha256": "", "limit_tokens": 64,
    }  # fmt: skip
    assert "tokenizer_file" not in published(chosen)["params"]["reading"]
    assert run(chosen, [plain(text(60))])[0].codes == ("out.tokens",)
    copied.write_bytes(b"{}")
    with pytest.raises(Refused, match="gone or has changed"):
        run(chosen, [plain(text(60))])
