"""Huge whole numbers and doubled keys in JSON: nothing is rounded or dropped without a word."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.datasets.findings import Problem, Record
from app.datasets.importing import import_file
from app.datasets.options import ReadOptions
from app.datasets.reading import fast
from app.datasets.reading.formats import sniff
from app.datasets.reading.readers import read
from app.datasets.tables import page, parts

BIG, LEAST, MOST = "123456789012345678901234567890", -(2**63), 2**64 - 1


def _found(path: Path, **options: Any) -> tuple[list[dict[str, Any]], list[tuple[int, str, str]]]:
    found = list(read(path, sniff(path, path.name), ReadOptions(**options)))
    rows = [item.values for item in found if isinstance(item, Record)]
    return rows, [(item.row, item.code, item.note) for item in found if isinstance(item, Problem)]


@pytest.mark.parametrize(
    ("name", "content", "rows", "problems"),
    [
        (
            "a.jsonl",
            f'{{"a": "x", "id": {BIG}}}\n{{"a": "y", "id": 7}}\n',
            [{"a": "x", "id": BIG}, {"a": "y", "id": 7}],
            [(1, "json.big_number", f"id: {BIG}")],
        ),
        ("edge.jsonl", f'{{"a": {LEAST}, "b": {MOST}}}\n', [{"a": LEAST, "b": MOST}], []),
        (
            "over.jsonl",
            f'{{"a": {LEAST - 1}, "b": {MOST + 1}}}\n',
            [{"a": str(LEAST - 1), "b": str(MOST + 1)}],
            [(1, "json.big_number", f"a: {LEAST - 1}, b: {MOST + 1}")],
        ),
        (
            "inside.json",
            f'[{{"m": [{{"n": 1}}, {{"n": -{BIG}}}], "f": 1e300}}]',
            [{"m": [{"n": 1}, {"n": f"-{BIG}"}], "f": 1e300}],
            [(1, "json.big_number", f"m[1].n: -{BIG}")],
        ),
        (
            "held.json",
            f'{{"version": 1, "rows": [{{"a": {BIG}}}, {{"a": 2}}]}}',
            [{"a": BIG}, {"a": 2}],
            [(1, "json.big_number", f"rows[0].a: {BIG}")],
        ),
        (
            "b.jsonl",
            '{"q": "1"}\n{"q": "first", "a": "x", "q": "second", "q 2": "taken", "q" : "third"}\n',
            [{"q": "1"}, {"q": "first", "a": "x", "q 3": "second", "q 2": "taken", "q 4": "third"}],
            [(2, "json.doubled_key", "“q”")],
        ),
        (
            "deep.json",
            '[{"m": [{"role": "user",\n"content": "hi", "content": "ho"}]}]',
            [{"m": [{"role": "user", "content": "hi", "content 2": "ho"}]}],
            [(1, "json.doubled_key", "“content”")],
        ),
        ("same.jsonl", '{"q": "x", "q": "x"}\n', [{"q": "x"}], [(1, "json.doubled_key", "“q”")]),
        (
            "escaped.jsonl",
            '{"q\\u0061": "x", "qa": "y"}\n{"a\\\\": 1, "b": 2, "b": 3}\n',
            [{"qa": "x", "qa 2": "y"}, {"a\\": 1, "b": 2, "b 2": 3}],
            [(1, "json.doubled_key", "“qa”"), (2, "json.doubled_key", "“b”")],
        ),
        # Texts that look like keys or numbers are neither.
        ("texts.jsonl", json.dumps({"a": '": "a": 1', "b": ": x", "c": BIG, "d": "\\"}) + "\n", None, []),
    ],
)
def test_nothing_is_lost(
    name: str, content: str, rows: list[dict[str, Any]] | None, problems: list[tuple[int, str, str]], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert _found(path) == (rows if rows is not None else [json.loads(content)], problems)


def test_the_fixes_for_doubled_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "first", "q": "last"}\n{"q": "whole"}\n')
    assert _found(path, doubled_keys="last")[0] == [{"q": "last"}, {"q": "whole"}]
    assert _found(path, doubled_keys="skip")[0] == [{"q": "whole"}]


def test_a_repaired_row_loses_nothing_either(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{{\"q\": \"x\", \"q\": \"y\", \"n\": {BIG},}}\n{{'q': 'x', 'q': 'y'}}\n{{'n': 0x{'f' * 4000}}}\n")
    rows, problems = _found(path, bad_json="repair")
    assert rows == [{"q": "x", "q 2": "y", "n": BIG}, {"n": "0x" + "f" * 4000}]
    assert [(row, code) for row, code, _note in problems] == [
        (1, "json.repaired"), (1, "json.doubled_key"), (1, "json.big_number"), (2, "json.invalid"),
        (3, "json.repaired"), (3, "json.big_number"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (f'{{"q": {BIG}, "a": "x"}}', "json.big_number"),
        ('{"q": "x", "a": "y", "q": "z"}', "json.doubled_key"),
    ],
)
def test_the_fast_path_leaves_such_a_file_to_the_other(
    row: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the lines that it looks at first, and in another block."""
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"q": f"what is {number}?", "a": "it is"}) for number in range(fast.HEAD_LINES + 500)]
    lines[fast.HEAD_LINES + 400] = row
    path.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(fast, "FROM_BYTES", 0)
    monkeypatch.setattr(fast, "BLOCK_BYTES", 4096)
    report = import_file(path, path.name, tmp_path / "rows-1", ReadOptions(), lambda done, total: None)
    assert [(one.code, one.first_row, one.out) for one in report.problems] == [(code, fast.HEAD_LINES + 401, 0)]
    assert report.rows == len(lines)
    kept = page(parts(tmp_path / "rows-1"), fast.HEAD_LINES + 400, 1)[0]
    assert kept["q"] == (BIG if code == "json.big_number" else "x")
    assert kept.get("q 2") == (None if code == "json.big_number" else "z")
