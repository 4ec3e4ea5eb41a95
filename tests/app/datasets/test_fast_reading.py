"""The fast and the tolerant path give the same rows, and what is not clean goes to the tolerant one."""

from pathlib import Path

import orjson
import pytest

from app.datasets import importing
from app.datasets.importing import import_file
from app.datasets.options import ReadOptions
from app.datasets.reading import fast
from app.datasets.tables import page, parts


def both(tmp_path: Path, name: str, content: bytes, monkeypatch) -> tuple[bool, list, list]:
    """(whether the fast path took it, its rows, the tolerant path's rows), read in small blocks."""
    path = tmp_path / name
    path.write_bytes(content)
    taken = []
    real = importing._into_fast

    def watched(*arguments):
        report = real(*arguments)
        taken.append(report)
        return report

    monkeypatch.setattr(importing, "_into_fast", watched)
    monkeypatch.setattr(fast, "BLOCK_BYTES", 4096)
    found = []
    for limit in (0, 1 << 40):
        monkeypatch.setattr(fast, "FROM_BYTES", limit)
        out = tmp_path / f"rows-{limit}"
        report = import_file(path, name, out, ReadOptions(), lambda done, total: None)
        rows = page(parts(out), 0, 10**6)
        assert len(rows) == report.rows
        found.append((report.rows, report.quarantined, report.columns, [p.code for p in report.problems], rows))
    assert found[0] == found[1]
    return bool(taken), found[0][4], found[0][3]


def lines_of(*more: bytes) -> bytes:
    rows = [b'%d,what is %d?,"it is, say, %d"' % (i, i, i) for i in range(900)]
    return b"\n".join([b"id,question,answer", *rows[:500], *more, *rows[500:]]) + b"\n"


CLEAN = {
    "plain.csv": lines_of(),
    "no_end.csv": lines_of()[:-1],
    "crlf.csv": lines_of().replace(b"\n", b"\r\n"),
    "bom.csv": b"\xef\xbb\xbf" + lines_of(),
    "umlauts.csv": lines_of("1,Größe?,你好 🙂".encode()),
    "quotes.csv": lines_of(b'7,"say ""no""",x"y'),
    "breaks.csv": lines_of(b'7,"two\nlines","three\n\nlines"', b'8,"a\nb",c'),
    "tabs.tsv": lines_of().replace(b", say, ", b" ").replace(b",", b"\t"),
}  # fmt: skip
OBJECTS = [{"question": f"what is {i}?", "answer": f"it is\n“{i}”"} for i in range(900)]
JSON_LINES = b"\n".join(orjson.dumps(o) for o in OBJECTS) + b"\n"


@pytest.mark.parametrize("name", CLEAN)
def test_clean_tables_take_the_fast_path(name, tmp_path, monkeypatch):
    is_fast, rows, _codes = both(tmp_path, name, CLEAN[name], monkeypatch)
    assert is_fast
    assert rows[-1]["question"] == "what is 899?"


def test_line_numbers_count_the_lines_of_the_file(tmp_path, monkeypatch):
    _fast, rows, _codes = both(tmp_path, "a.csv", CLEAN["breaks.csv"], monkeypatch)
    lines = CLEAN["breaks.csv"].split(b"\n")
    assert [lines[row["_row"] - 1].startswith(f"{row['id']},".encode()) for row in rows] == [True] * 902


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("short.csv", lines_of(b"7,only two"), "row.short"),
        ("long.csv", lines_of(b"7,a,b,c"), "row.long"),
        ("blank.csv", lines_of(b""), "line.empty"),
        ("byte.csv", lines_of("7,Größe,x".encode() + b"\n8,caf\xe9,x"), "decode.fallback"),
        ("open.csv", lines_of(b'7,"never closed,x'), "row.long"),
        ("first.csv", lines_of().replace(b"id,question,answer", b"7,what is 7?,it is 7", 1), "header.is_row"),
        ("doubled.csv", lines_of().replace(b"id,question", b"answer,question", 1), "header.doubled"),
        ("return.csv", lines_of(b"7,a\rb,c"), ""),
        ("mixed.csv", lines_of(b'7,"a\r\nb",c'), ""),
        ("blanks.tsv", b"q\ta\n" + b"x\ty\n" * 500 + b" \t \n" + b"x\ty\n" * 50, "line.empty"),
    ],
)
def test_what_is_not_clean_goes_the_tolerant_way(name, content, code, tmp_path, monkeypatch):
    is_fast, _rows, codes = both(tmp_path, name, content, monkeypatch)
    assert not is_fast
    assert not code or code in codes


def test_clean_lines_of_json(tmp_path, monkeypatch):
    for name, content in {
        "a.jsonl": JSON_LINES,
        "b.jsonl": JSON_LINES.replace(b"\n", b"\r\n"),
        "c.jsonl": JSON_LINES + b'{"question": null, "answer": "2020-01-01"}\n{"answer": "08123"}',
    }.items():
        assert both(tmp_path, name, content, monkeypatch)[0], name


@pytest.mark.parametrize(
    "line",
    [
        b"", b'{"question": 5}', b'{"question": ["a"]}', b'{"question": "a", "other": "b"}', b'{"question": "\xff"}',
        b'{"question": "a"', b'{"question": "a"}{"question": "b"}', b'{"question": "\\ud800"}', b"[1]", b"  ",
        b'{"question": "a", "question": "b"}', b'{"question": "tab\there"}', b'{"question": NaN}', b"null",
    ],
)  # fmt: skip
def test_other_lines_of_json_go_the_tolerant_way(line, tmp_path, monkeypatch):
    content = JSON_LINES + line + b"\n" + JSON_LINES
    both(tmp_path, "a.jsonl", content, monkeypatch)
