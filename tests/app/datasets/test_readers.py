"""Every awkward file of the fixtures: which rows come out, and what is said about the others."""

import json
import pickle
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.datasets.findings import REASONS, Problem, Record, Refused
from app.datasets.options import ReadOptions
from app.datasets.reading import json_records, lines
from app.datasets.reading.formats import sniff
from app.datasets.reading.readers import read

FIXTURES = Path(__file__).parents[2] / "fixtures"
MESSY = FIXTURES / "messy_made"


def read_all(path: Path, **options) -> tuple[list[Record], list[Problem]]:
    found = list(read(path, sniff(path, path.name), ReadOptions(**options)))
    return [f for f in found if isinstance(f, Record)], [f for f in found if isinstance(f, Problem)]


@pytest.mark.parametrize(
    ("name", "kind", "encoding", "delimiter", "rows", "problems"),
    [
        ("utf8.csv", "csv", "utf-8", ",", 600, {}),
        ("utf8_bom_semicolon_crlf.csv", "csv", "utf-8", ";", 600, {}),
        ("utf16le_tab.tsv", "tsv", "utf-16-le", "\t", 600, {}),
        ("latin1.csv", "csv", "cp1252", ",", 433, {}),
        ("cp1251.csv", "csv", "cp1251", ",", 14, {}),
        ("mixed_encodings.csv", "csv", "utf-8", ",", 200, {"decode.fallback": 42}),
        ("ragged.csv", "csv", "utf-8", ",", 300, {"row.short": 30, "row.long": 31, "quote.unclosed": 1}),
        (
            "broken_lines.jsonl",
            "jsonl",
            "utf-8",
            ",",
            242,
            {"json.invalid": 45, "line.empty": 8, "json.not_object": 5, "key.unknown": 5},
        ),
        ("missing_values.jsonl", "jsonl", "utf-8", ",", 200, {}),
        ("mojibake.jsonl", "jsonl", "utf-8", ",", 392, {}),
    ],
)
def test_messy_files(name, kind, encoding, delimiter, rows, problems):
    sniffed = sniff(MESSY / name, name)
    records, found = read_all(MESSY / name)
    assert (sniffed.format, sniffed.encoding, sniffed.delimiter) == (kind, encoding, delimiter)
    assert len(records) == rows
    assert Counter(p.code for p in found) == problems
    assert all(p.code in REASONS for p in found)


@pytest.mark.parametrize("name", ["utf8_bom_semicolon_crlf.csv", "utf16le_tab.tsv"])
def test_same_rows_in_every_encoding(name):
    clean = [r.values for r in read_all(MESSY / "utf8.csv")[0]]
    assert [r.values for r in read_all(MESSY / name)[0]] == clean
    assert clean[7]["id"] == "00007", "a code keeps its zeros"


def test_latin1_letters_are_right():
    assert read_all(MESSY / "latin1.csv")[0][0].values["question"] == "Der Kuchen ist eine Lüge."


def test_problems_name_their_line_and_bytes():
    _records, problems = read_all(MESSY / "broken_lines.jsonl")
    first = next(p for p in problems if p.code == "json.invalid")
    line = (MESSY / "broken_lines.jsonl").read_bytes().split(b"\n")[first.row - 1]
    assert first.row == 6
    assert first.raw == line
    unclosed = next(p for p in read_all(MESSY / "ragged.csv")[1] if p.code == "quote.unclosed")
    assert unclosed.row == 302
    assert unclosed.raw.startswith(b"00300,es,")


def test_fixes_change_what_is_read():
    assert len(read_all(MESSY / "ragged.csv", short_rows="skip")[0]) == 270
    assert len(read_all(MESSY / "ragged.csv", long_rows="skip")[0]) == 269
    assert len(read_all(MESSY / "ragged.csv", open_quotes="repair")[0]) == 301
    joined = next(r for r in read_all(MESSY / "ragged.csv")[0] if r.values["id"] == "00006")
    assert joined.values["answer"] == "Tudo bem,extra,more"
    cut = next(r for r in read_all(MESSY / "ragged.csv", long_rows="cut")[0] if r.values["id"] == "00006")
    assert cut.values["answer"] == "Tudo bem"
    assert len(read_all(MESSY / "mixed_encodings.csv", wrong_encoding="skip")[0]) == 158


def test_json_repair_keeps_what_can_be_meant():
    records, problems = read_all(MESSY / "broken_lines.jsonl", bad_json="repair")
    counts = Counter(p.code for p in problems)
    # 15 single quotes and 15 trailing commas are repaired; 15 lines cut in half are not.
    assert (counts["json.repaired"], counts["json.invalid"]) == (30, 15)
    assert len(records) == 272
    renamed, _ = read_all(MESSY / "broken_lines.jsonl", mistyped_columns="map", renamed={"Prompt ": "prompt"})
    assert all("prompt" in r.values for r in renamed)


@pytest.mark.parametrize("path", sorted((FIXTURES / "csv_spectrum").glob("*.csv")), ids=lambda p: p.stem)
def test_csv_spectrum(path):
    expected = json.loads(path.with_suffix(".json").read_text())
    expected = expected if isinstance(expected, list) else [expected]
    records, problems = read_all(path)
    if path.stem == "location_coordinates":
        # The suite's own answer has another telephone number than its file.
        expected[0]["Contact Phone Number"] = "2095257564"
    # Line ends inside a cell are one sign, whatever the file had.
    assert [r.values for r in records] == json.loads(json.dumps(expected).replace("\\r\\n", "\\n"))
    assert not problems


@pytest.mark.parametrize("path", sorted((FIXTURES / "json_test_suite").glob("*.json")), ids=lambda p: p.stem)
def test_json_suite(path):
    try:
        records, problems = read_all(path)
    except Refused:
        # Only the encodings that nobody can tell apart are refused whole.
        assert not path.name.startswith("y_"), "a good file was refused"
        return
    if path.name.startswith("n_"):
        assert problems
    if path.name.startswith("y_"):
        value = json.loads(path.read_bytes())
        objects = value if isinstance(value, list) else [value]
        assert [r.values for r in records] == [v for v in objects if isinstance(v, dict)]
        assert len(problems) == sum(not isinstance(v, dict) for v in objects)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("rows.jsonl", pickle.dumps({"a": 1}), "pickle"),
        ("rows.csv", pickle.dumps([1], protocol=2), "pickle"),
        ("rows.csv", b"\x7fELF\x02\x01\x01\0\0\0", "program"),
        ("rows.csv", b"MZ\x90\0\x03\0\0\0", "Windows program"),
        ("rows.csv", b"<svg onload=alert(1)>", "drawing"),
        ("rows.html", b"<?xml version='1.0'?><svg onload=alert(1)>", "drawing"),
        ("rows.csv", bytes(257) + b"ustar\0", "tar archive"),
        ("rows.csv", b"abc\0\0\0def\0ghi\x01\x02", "not a text file"),
        ("rows.csv", b"", "empty"),
    ],
)
def test_refused_by_content_not_by_name(tmp_path, name, content, word):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(Refused, match=word):
        sniff(path, name)


def test_parquet_values_are_kept(tmp_path):
    path = tmp_path / "rows.parquet"
    rows = [{"q": "a", "n": 5, "turns": [{"role": "user", "content": "x"}], "b": b"\xff"}, {"q": None, "n": None}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    records, problems = read_all(path)
    assert records[0].values == {"q": "a", "n": 5, "turns": [{"role": "user", "content": "x"}], "b": "/w=="}
    assert records[1].values["n"] is None
    assert not problems


def test_damaged_parquet_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1" + b"\0" * 200 + b"PAR1")
    with pytest.raises(Refused, match="damaged"):
        read_all(path)


@pytest.mark.parametrize(("unit", "rows"), [("line", 5), ("paragraph", 2), ("document", 1), ("block", 1)])
def test_text_units(tmp_path, unit, rows):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\nthree\nfour\nfive\n")
    records, _ = read_all(path, text_unit=unit)
    assert len(records) == rows
    assert "".join("".join(r.values["text"].split()) for r in records) == "onetwothreefourfive"


def test_list_inside_an_object(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, "data": [{"a": 1}, {"a": 2}]}))
    assert [r.values for r in read_all(path)[0]] == [{"a": 1}, {"a": 2}]


def test_broken_row_in_a_list_costs_only_itself(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n{"a": 1},\n{"a": },\n{"a": 3},\n{"a": "}],[{"}\n]')
    records, problems = read_all(path)
    assert [r.values["a"] for r in records] == [1, 3, "}],[{"]
    assert [(p.code, p.row) for p in problems] == [("json.invalid", 3)]


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(
        st.lists(
            st.text(
                st.characters(
                    blacklist_categories=["Cs"], blacklist_characters="\0\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
                )
            ),
            max_size=5,
        ),
        min_size=1,
        max_size=20,
    ),
    damage=st.lists(
        st.tuples(st.integers(0, 400), st.sampled_from([b'"', b",", b"\n", b"\xff", b"\x80", b"{"])), max_size=4
    ),
)
def test_every_csv_record_is_kept_or_named(tmp_path_factory, rows, damage):
    """Each line that is not blank is accounted for: in a record, or in a problem that says where."""
    content = bytearray(b"a,b,c\n" + b"\n".join(",".join(row).encode() for row in rows) + b"\n")
    for place, sign in damage:
        content.insert(6 + place % (len(content) - 5), sign[0])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(content)
    sniffed = sniff(path, path.name)
    found = list(read(path, sniffed, ReadOptions(format="csv", delimiter=",", encoding="utf-8")))
    kept = [f.row for f in found if isinstance(f, Record)]
    out = [f.row for f in found if isinstance(f, Problem) and not f.is_kept]
    blank = [f.row for f in found if isinstance(f, Problem) and f.code == "line.empty"]
    assert len(kept) == len(set(kept))
    assert not set(kept) & set(out)
    seen = sorted([*kept, *out, *blank])
    lines = len(bytes(content).rstrip(b"\n").split(b"\n"))
    # Lines without a record of their own are inside the quoted cell of the record before.
    raw = bytes(content).split(b"\n")
    for line in range(2, lines + 1):
        if line not in seen:
            before = max(n for n in [1, *seen] if n < line)
            assert b'"' in b"".join(raw[before - 1 : line])


def test_an_open_quote_costs_one_line(tmp_path):
    path = tmp_path / "a.csv"
    lines = ["q,a", *(f"q{i},a{i}" for i in range(900))]
    lines[5] = 'q4,"never closed'
    path.write_text("\n".join(lines))
    records, problems = read_all(path)
    assert [r.values["q"] for r in records] == [f"q{i}" for i in range(900) if i != 4]
    assert [(p.code, p.row, p.is_kept) for p in problems] == [("quote.unclosed", 6, False)]


@pytest.mark.parametrize("sign", ["\r", "\u2028", "\x0b", "\x1c", "\x85", "\f"])
def test_other_line_ends_stay_inside_their_cell(tmp_path, sign):
    path = tmp_path / "a.csv"
    path.write_text(f'q,a\none{sign}two,three\n"four{sign}five",six\n', newline="")
    records, problems = read_all(path)
    assert [r.values["a"] for r in records] == ["three", "six"]
    assert [len(r.values["q"].split()) for r in records] == [2, 2]
    assert not problems


@pytest.mark.parametrize(
    ("text", "is_row"),
    [
        ("question,answer\nIs it open?,Yes it is.\n", False),
        ("Customer asks,We say\nopen?,Yes.\n", False),
        ("is it open?,We are open from nine to six.\nand on Sunday?,No.\n", True),
        ("great film,positive\nawful,negative\nlovely,positive\n", True),
        ("2024-03-01,good\n2024-03-02,bad\n", True),
        ("name,label\nAda,a\nname,label\nBob,b\n", False),
    ],
)
def test_a_first_line_that_is_a_row_is_noticed_and_can_be_kept(tmp_path, text, is_row):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    records, problems = read_all(path)
    assert [p.code for p in problems] == (["header.is_row"] if is_row else [])
    assert all(p.row == 1 and p.is_kept for p in problems)
    fix = next(fix for fix in REASONS["header.is_row"].fixes if fix.value == "false")
    kept, problems = read_all(path, **{fix.name: fix.value})
    assert (len(kept), problems) == (len(records) + 1, [])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1251", "gb18030"])
def test_a_list_on_one_long_line_is_read_row_by_row(tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(lines, "LINE_LIMIT_BYTES", 1 << 20)
    monkeypatch.setattr(json_records, "LINE_LIMIT_BYTES", 1 << 20)
    word = {"gb18030": "为什么，", "cp1251": "почему, "}.get(encoding, "wärum, 🙂 ")
    rows = [{"question": f'{n} "{word * 300}"', "answer": word} for n in range(1500)]
    path = tmp_path / "one.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding=encoding)
    assert path.stat().st_size > 2 << 20, "the line is over the limit of one row"
    sniffed = sniff(path, path.name).model_copy(update={"encoding": encoding, "bom_bytes": 2 * (encoding == "utf-16")})
    sniffed = sniffed.model_copy(update={"encoding": "utf-16-le"}) if encoding == "utf-16" else sniffed
    assert [found.values for found in read(path, sniffed, ReadOptions())] == rows


def test_a_row_over_the_limit_in_a_list_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LINE_LIMIT_BYTES", 1 << 20)
    monkeypatch.setattr(json_records, "LINE_LIMIT_BYTES", 1 << 20)
    path = tmp_path / "one.json"
    path.write_text(json.dumps([{"text": "x" * (5 << 20)}]))
    with pytest.raises(Refused, match="A row near line 1 is over 32 MB"):
        read_all(path)
