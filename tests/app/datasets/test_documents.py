"""Documents, spreadsheets, chats and archives: what rows come out, and what hostile ones are answered."""

import bz2
import gzip
import io
import lzma
import shutil
import stat
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pytest

from app.datasets.findings import REASONS, Problem, Record, Refused
from app.datasets.importing import ImportReport, import_file
from app.datasets.options import ReadOptions
from app.datasets.reading.formats import sniff
from app.datasets.reading.readers import read

FIXTURES = Path(__file__).parents[2] / "fixtures"
DOCUMENTS = FIXTURES / "documents"


def read_all(path: Path, **options) -> tuple[list[Record], list[Problem]]:
    found = list(read(path, sniff(path, path.name), ReadOptions(**options)))
    return [f for f in found if isinstance(f, Record)], [f for f in found if isinstance(f, Problem)]


def brought(path: Path, out: Path, password: str = "") -> ImportReport:
    return import_file(path, path.name, out / "rows-1", ReadOptions(), lambda done, total: None, password)


@pytest.mark.parametrize(
    ("name", "kind", "rows", "problems"),
    [
        ("returns.docx", "docx", 4, {}),
        ("kettle.pdf", "pdf", 2, {"page.scanned": 1}),
        ("book.epub", "epub", 4, {}),
        ("page.html", "html", 3, {}),
        ("notes.md", "markdown", 4, {}),
        ("orders.xlsx", "sheets", 15, {"sheet.empty": 1, "cell.formula": 1}),
        ("old.xls", "sheets", 2, {}),
        ("irc.txt", "chat", 2, {"chat.notice": 1, "chat.line": 1}),
        ("whatsapp.txt", "chat", 2, {"chat.notice": 1}),
        ("turns.txt", "chat", 2, {}),
        ("slack.json", "chat", 2, {"chat.notice": 1}),
        ("discord.json", "chat", 1, {}),
        ("mixed.zip", "zip", 14, {"member.packed": 1, "member.refused": 1}),
    ],
)
def test_every_format(name, kind, rows, problems, tmp_path):
    # Without its name, too: the bytes tell.
    if kind not in ("markdown",):
        shutil.copyfile(DOCUMENTS / name, tmp_path / "unnamed")
        assert sniff(tmp_path / "unnamed", "unnamed").format == kind
    records, found = read_all(DOCUMENTS / name)
    assert len(records) == rows
    assert Counter(p.code for p in found) == problems
    assert len({r.row for r in records}) == rows
    assert all(p.code in REASONS for p in found)


def test_blocks_know_their_document_place_and_headings():
    records, _ = read_all(DOCUMENTS / "returns.docx")
    assert [(r.values["heading"], r.values["text"]) for r in records] == [
        ("Returns", "You may send things back within 30 days."),
        ("Returns › How", "- Pack it\n- Post it"),
        ("Returns › How", "| Country | Cost |\n| --- | --- |\n| Norway | 12 |"),
        ("Returns › How › Exceptions", "Food cannot be sent back. Größe zählt."),
    ]
    pages, scanned = read_all(DOCUMENTS / "kettle.pdf")
    assert [(r.values["place"], r.values["heading"]) for r in pages] == [("page 1", "Guarantee"), ("page 2", "Repairs")]
    assert pages[1].values["text"] == "Repairs are made in our shop (Bergen).\nThey take a week."
    assert scanned[0].place == "page 3"
    book, _ = read_all(DOCUMENTS / "book.epub")
    assert [r.values["text"] for r in book] == ["It sang & sang.", "Nobody came.", "- Tea", "- Milk"]
    code = next(r for r in read_all(DOCUMENTS / "notes.md")[0] if "```" in r.values["text"])
    assert code.values["text"] == "```\n# no heading\n\ncode\n```"


def test_a_web_page_gives_its_text_and_not_its_menu():
    text = " ".join(r.values["text"] for r in read_all(DOCUMENTS / "page.html")[0])
    assert "from nine in the morning" in text
    assert "| Monday | 9 to 18 |" in text
    assert not any(word in text for word in ("alert", "Log in", "Imprint"))


def test_formulas_without_a_stored_result_are_named(tmp_path: Path):
    """As programs write them that do not calculate; those with a result say nothing."""
    with zipfile.ZipFile(DOCUMENTS / "orders.xlsx") as whole, zipfile.ZipFile(tmp_path / "sums.xlsx", "w") as made:
        for name in whole.namelist():
            content = whole.read(name).replace(b'<c r="C2" t="n"><v>1.5</v></c>', b'<c r="C2"><f>1+0.5</f><v></v></c>')
            content = content.replace(b'name="Orders"', b'name="Orders &amp; more"')
            content = content.replace(b'<c r="C3" t="n"><v>3</v></c>', b'<c r="C3" t="n"><f>SUM(C2:C2)</f><v>3</v></c>')
            made.writestr(name, content)
    records, problems = read_all(tmp_path / "sums.xlsx", sheet="Orders & more")
    assert [r.values["price"] for r in records[:2]] == ["", 3]
    assert [(p.code, p.note, p.place) for p in problems] == [
        ("cell.formula", "2: C2, B14", "sheet Orders & more, row 2")
    ]
    assert ("cell.formula", 1) in [(one.code, one.count) for one in brought(tmp_path / "sums.xlsx", tmp_path).problems]


def test_sheets_keep_zeros_dates_and_formulas_as_text():
    records, _ = read_all(DOCUMENTS / "orders.xlsx")
    assert records[1].values == {
        "sheet": "Orders", "code": "08002", "question": "Where is order 2?", "price": 3, "when": "2026-03-02",
    }  # fmt: skip
    assert records[13].values["answer"] == 'Me, =HYPERLINK("http://e")'
    one, _ = read_all(DOCUMENTS / "orders.xlsx", sheet="Answers")
    assert [list(r.values) for r in one] == [["question", "answer"]] * 2
    with pytest.raises(Refused, match="no sheet"):
        read_all(DOCUMENTS / "orders.xlsx", sheet="Nowhere")


def test_members_of_an_archive_keep_their_path():
    records, problems = read_all(DOCUMENTS / "mixed.zip")
    assert Counter(r.values["source"] for r in records) == {
        "faq/one.csv": 2, "docs/returns.docx": 4, "notes.md": 4, "inner.zip": 4,
    }  # fmt: skip
    assert records[0].place == "faq/one.csv, line 2"
    assert [p.place.split(",")[0] for p in problems] == ["nested.zip", "photo.png"]


def test_chats_part_after_half_an_hour_and_the_assistant_can_be_chosen():
    records, _ = read_all(DOCUMENTS / "irc.txt")
    assert [m["content"] for m in records[1].values["messages"]] == ["hello, black tea?", "four minutes\nboiling water"]
    assert [m["role"] for m in records[0].values["messages"]] == ["user", "assistant", "user", "assistant", "user"]
    assert len(read_all(DOCUMENTS / "irc.txt", gap_minutes=600)[0]) == 1
    chosen, _ = read_all(DOCUMENTS / "irc.txt", assistant="ada")
    assert chosen[0].values["messages"][0] == {"role": "assistant", "content": "how long for green tea?"}
    first, second = (r.values for r in read_all(DOCUMENTS / "whatsapp.txt")[0])
    assert (first["began"], second["began"]) == ("2025-12-31 21:41", "2026-01-01 09:12")
    assert first["messages"][0]["content"] == "Is the shop open\nthis evening?"


def test_midnight_in_a_chat_log(tmp_path):
    lines = [
        f"[{h:02}:{m:02}] <{who}> {text}"
        for h, m, who, text in [(9, 0, "a", "x?"), (9, 1, "b", "y"), (23, 59, "a", "z?"), (0, 1, "b", "w")]
    ]
    path = tmp_path / "log"
    path.write_text("\n".join(lines))
    records, problems = read_all(path)
    assert [len(r.values["messages"]) for r in records] == [2, 2], "midnight is no silence of a day"
    assert not problems


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zstd"])
def test_packed_files(kind, tmp_path):
    content = (FIXTURES / "messy_made" / "utf8.csv").read_bytes()
    pack = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}
    packed = pack[kind](content) if kind in pack else pa.Codec("zstd").compress(content, asbytes=True)
    if kind == "zstd":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as out:
            out.write(content)
        packed = sink.getvalue().to_pybytes()
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(packed)
    report = brought(path, tmp_path / "out")
    assert (report.rows, report.sniffed.packing, report.sniffed.format) == (600, kind, "csv")
    assert sorted(p.name for p in (tmp_path / "out" / "rows-1").iterdir()) == [
        "findings.parquet", "report.json", "rows-00000.parquet",
    ]  # fmt: skip
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(Refused):
        brought(path, tmp_path / "out")


@pytest.mark.parametrize("is_stream", [True, False])
def test_arrow(is_stream, tmp_path):
    table = pa.table({"q": ["a", "b"], "n": [1, None], "turns": [[{"role": "user"}], []]})
    path = tmp_path / "rows.bin"
    with (ipc.new_stream if is_stream else ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table)
    assert read_all(path)[0][0].values == {"q": "a", "n": 1, "turns": [{"role": "user"}]}


def test_locked_documents_ask_for_the_password(tmp_path):
    for password, word in (("", "locked"), ("wrong", "does not open")):
        with pytest.raises(Refused, match=word) as refusal:
            brought(DOCUMENTS / "locked.pdf", tmp_path, password)
        assert refusal.value.code == "file.password"
    assert brought(DOCUMENTS / "locked.pdf", tmp_path, "sesame").rows == 2
    path = tmp_path / "locked.xlsx"
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600) + "EncryptedPackage".encode("utf-16-le"))
    with pytest.raises(Refused, match="locked with a password"):
        sniff(path, path.name)


def test_a_scan_is_named_and_not_called_empty(tmp_path):
    with pytest.raises(Refused, match=r"page 1: pages that are pictures.*OCR"):
        brought(DOCUMENTS / "scanned.pdf", tmp_path)


def archive(path: Path, *members: tuple[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = mode << 16
            out.writestr(info, content)
    return path


@pytest.mark.parametrize("name", ["../../e.csv", "/abs.csv", "a/../../b.csv", "a\\..\\b.csv", "C:\\x.csv"])
def test_members_that_point_outside_refuse_the_archive(name, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    path = archive(place / "a.zip", ("good.csv", b"a\n1\n"), (name, b"a\n1\n"))
    with pytest.raises(Refused, match="outside"):
        brought(path, place)
    assert [p.name for p in place.iterdir()] == ["a.zip"]


def test_hostile_archives(tmp_path):
    with pytest.raises(Refused, match="links"):
        sniff(archive(tmp_path / "l.zip", ("a", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777), "l.zip")
    with pytest.raises(Refused, match="over 2,000"):
        sniff(archive(tmp_path / "m.zip", *((f"{i}.csv", b"") for i in range(2001))), "m.zip")
    with pytest.raises(Refused, match="hundred times"):
        sniff(archive(tmp_path / "b.zip", ("a.csv", bytes(70 << 20))), "b.zip")
    lying = bytearray(archive(tmp_path / "c.zip", ("a.csv", b"a\n" + b"1\n" * 5000)).read_bytes())
    place = lying.find(b"PK\x01\x02")
    lying[place + 24 : place + 28] = (12).to_bytes(4, "little")
    (tmp_path / "c.zip").write_bytes(lying)
    with pytest.raises(Refused, match="damaged"):
        brought(tmp_path / "c.zip", tmp_path / "out")


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_packed_bombs_end_early(kind, tmp_path):
    path = tmp_path / "a.csv.gz"
    if kind == "gzip":
        with gzip.open(path, "wb", 1) as out:
            for _ in range(80):
                out.write(bytes(1 << 20))
    else:
        with pa.CompressedOutputStream(str(path), "zstd") as out:
            for _ in range(80):
                out.write(bytes(1 << 20))
    with pytest.raises(Refused, match="hundred times"):
        brought(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == [], "nothing is left of it"


@pytest.mark.parametrize("name", ["returns.docx", "orders.xlsx"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_in_office_files_are_refused(name, encoding, tmp_path):
    canary = tmp_path / "canary"
    canary.write_text("canary-8141")
    part = "word/document.xml" if name.endswith("docx") else "xl/sharedStrings.xml"
    hostile = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file://{canary}">]><x>&e;</x>'
    with zipfile.ZipFile(DOCUMENTS / name) as source:
        members = [(n, source.read(n)) for n in source.namelist() if n != part]
    path = archive(tmp_path / name, *members, (part, hostile.encode(encoding)))
    with pytest.raises(Refused, match="entities") as refusal:
        brought(path, tmp_path / "out")
    assert "canary-8141" not in str(refusal.value)


def test_the_child_has_no_network_and_starts_no_programs(tmp_path):
    """The kernel answers, not only Python: the calls are made past it."""
    script = (
        "import ctypes, os, resource, socket\n"
        "from app.datasets import confinement\n"
        "confinement.limit(2**31, 100, 4096)\n"
        "assert confinement.shut_in()\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.socket(2, 1, 0) == -1 and ctypes.get_errno() == 1\n"
        "assert libc.execv(b'/bin/true', (ctypes.c_char_p * 2)(b'true', None)) == -1 and ctypes.get_errno() == 1\n"
        "try:\n    socket.create_connection(('127.0.0.1', 9))\nexcept PermissionError: print('no network')\n"
        f"out = open({str(tmp_path / 'big')!r}, 'wb', buffering=0)\n"
        "try:\n    [out.write(bytes(4096)) for _ in range(3)]\nexcept OSError as error: print('file', error.errno)\n"
        "try:\n    bytes(2**31)\nexcept MemoryError: print('memory')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:3] == ["no network", "file 27", "memory"], done.stderr


def test_columns_that_only_say_where_are_not_learned(tmp_path):
    for name, mapping in (("book.epub", "{text}"), ("kettle.pdf", "{text}")):
        best = brought(DOCUMENTS / name, tmp_path / name).detections[0]
        assert (best.format, best.mapping.text) == ("text", mapping)
    report = brought(DOCUMENTS / "slack.json", tmp_path / "slack")
    assert (report.detections[0].format, report.facts["assistant"]) == ("messages", ["Help bot"])


def test_a_damaged_table_of_pdf_pages_is_rebuilt(tmp_path):
    content = (DOCUMENTS / "kettle.pdf").read_bytes()
    place = content.rfind(b"startxref")
    path = tmp_path / "a.pdf"
    path.write_bytes(io.BytesIO(content[:place] + b"startxref\n7\n%%EOF").getvalue())
    assert len(read_all(path)[0]) == 2
