"""What a file is, told from its bytes and not from its name: format, encoding, delimiter, or a refusal."""

import codecs
import csv
import re
from pathlib import Path

import orjson
from charset_normalizer import from_bytes

from app.datasets.findings import Refused
from app.datasets.reading.chat_lines import dialect_of
from app.datasets.reading.packages import member_bytes, open_package
from app.datasets.reading.sniffed import Dialect, Format, Sniffed
from app.datasets.reading.unpacking import packing_of

SAMPLE_BYTES = 256 * 1024
DELIMITERS = ",;\t|^~"

_REFUSED_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\x7fELF", "This is a program, not text."),
    (b"MZ", "This is a Windows program, not text."),
    (b"\xcf\xfa\xed\xfe", "This is a program, not text."),
    (b"\xca\xfe\xba\xbe", "This is a program, not text."),
    (b"7z\xbc\xaf\x27\x1c", "This is a 7-Zip archive. Unpack it first, then bring the files that were inside."),
    (b"Rar!", "This is a RAR archive. Unpack it first, then bring the files that were inside."),
    (b"\xca\xfe\xd0\x0d", "This is a program, not text."),
    (b"dex\n", "This is a program, not text."),
    (b"\x00asm", "This is a program, not text."),
    (b"{\\rtf", "This is an RTF document. Save it as DOCX, then bring that."),
    (b"SQLite format 3", "This is a database. Export the table as CSV, then bring that."),
    (b"\x89HDF", "This is an HDF5 file. Export the table as CSV or Parquet, then bring that."),
    (b"\x93NUMPY", "This is a NumPy file. Export the table as CSV or Parquet, then bring that."),
    (b"\x89PNG", "This is a picture. We learn from text."),
    (b"\xff\xd8\xff", "This is a picture. We learn from text."),
    (b"GIF8", "This is a picture. We learn from text."),
    (b"OggS", "This is a sound recording. We learn from text."),
    (b"ID3", "This is a sound recording. We learn from text."),
)
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_PROLOGUE = r"\s*(<\?xml[^>]{0,200}\?>\s*)?(<!--.{0,2000}?-->\s*)*"
_DRAWING = re.compile(_PROLOGUE + "(<!doctype svg|<svg)", re.I | re.S)
_WEB_PAGE = re.compile(_PROLOGUE + "(<!doctype html|<html|<head|<body)", re.I | re.S)
_XML = re.compile(r"\s*<\?xml", re.I)
_TAR = b"ustar"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def _samples(path: Path) -> tuple[bytes, bytes]:
    """The first 256 KiB, and a further 256 KiB from the middle and the end for the encoding's sake."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(SAMPLE_BYTES)
        far = b""
        if size > 2 * SAMPLE_BYTES:
            for place in (size // 2, size - SAMPLE_BYTES // 2):
                stream.seek(place)
                part = stream.read(SAMPLE_BYTES // 2)
                far += part[part.find(b"\n") + 1 : part.rfind(b"\n") + 1]
    return head, far


def sniff(path: Path, filename: str) -> Sniffed:
    """Look at the bytes of `path`; the extension of `filename` only settles ties. Raises Refused."""
    head, far = _samples(path)
    if not head:
        raise Refused("This file is empty. Bring one with something in it.", "file.empty")
    for start, sentence in _REFUSED_STARTS:
        if head.startswith(start) and not (start in (b"MZ", b"ID3", b"BZh") and b"\0" not in head[:1024]):
            raise Refused(sentence)
    if _PICKLE.match(head):
        raise Refused("This is a Python pickle. Opening one can run a program, so we never do. Save the rows as JSONL.")
    if head[257:262] == _TAR:
        raise Refused("This is a tar archive. Pack the files as ZIP, then bring that.", "file.tar")
    if packing := packing_of(head):
        return Sniffed(format="txt", packing=packing)
    if (kind := _container(path, head)) is not None:
        return Sniffed(format=kind)
    encoding, bom_bytes = _encoding(head, far)
    try:
        text = head[bom_bytes:].decode(encoding, "replace")
    except LookupError as error:
        raise Refused(f"The encoding {encoding} is not known here. Save the file as UTF-8.") from error
    if "\0" in text[:4096]:
        raise Refused("This is not a text file, and none of the kinds that we read. Bring text, a table or a document.")
    return _text_file(text, filename, encoding, bom_bytes)


def _container(path: Path, head: bytes) -> Format | None:
    """Formats that are told by their first bytes."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"FEA1", b"\xff\xff\xff\xff")):
        return "arrow"
    if head[:1024].lstrip().startswith(b"%PDF"):
        return "pdf"
    if head.startswith(_OLE):
        return _ole(path)
    if head.startswith(b"PK\x05\x06"):
        raise Refused("This is an empty ZIP archive.")
    return _package(path) if head.startswith(b"PK\x03\x04") else None


def _ole(path: Path) -> Format:
    """Old Office files, and new ones with a password: the name of their main stream stands in the directory."""
    content = path.open("rb").read(64 * 1024 * 1024)
    if "EncryptedPackage".encode("utf-16-le") in content:
        raise Refused(
            "This office file is locked with a password. Open it in your office program, save it without one, then "
            "bring it again.",
            "file.password",
        )
    if any(name.encode("utf-16-le") in content for name in ("Workbook", "Book")):
        return "sheets"
    raise Refused("This is an old Word or PowerPoint file. Save it as DOCX, then bring that.")


def _package(path: Path) -> Format:
    """What is in a ZIP container: an office document, a book, or other files."""
    with open_package(path) as archive:
        names = set(archive.namelist())
        if "word/document.xml" in names:
            return "docx"
        if names & {"xl/workbook.xml", "xl/workbook.bin"}:
            return "sheets"
        if "ppt/presentation.xml" in names:
            raise Refused("These are slides. Save them as PDF, then bring that.")
        if "META-INF/container.xml" in names:
            return "epub"
        if "mimetype" in names:
            kind = member_bytes(archive, "mimetype", 4096)
            if b"opendocument.spreadsheet" in kind:
                return "sheets"
            if b"opendocument" in kind:
                raise Refused("This is an OpenDocument text. Save it as DOCX, then bring that.")
    return "zip"


def _text_file(text: str, filename: str, encoding: str, bom_bytes: int) -> Sniffed:
    """How decoded text is to be read. Raises Refused for drawings and other XML."""
    extension = filename.lower().rsplit(".", 1)[-1]
    if _DRAWING.match(text):
        raise Refused("This is a drawing. We learn from text.")
    kind: Format
    if _WEB_PAGE.match(text) or (extension in ("html", "htm", "xhtml") and "<" in text):
        return Sniffed(format="html", encoding=encoding, bom_bytes=bom_bytes)
    if _XML.match(text):
        raise Refused("This is an XML file. Save its rows as CSV or JSON, then bring that.")
    is_old_mac = "\n" not in text and "\r" in text
    text = text.replace("\r", "\n") if is_old_mac else text
    kind, delimiter = "txt", ","
    dialect: Dialect = "" if extension in ("csv", "tsv", "md", "markdown", "jsonl") else dialect_of(text)
    if dialect:
        kind = "chat"
    elif extension in ("md", "markdown"):
        kind = "markdown"
    else:
        kind, delimiter = _text_format(text, extension)
    return Sniffed(
        format=kind, encoding=encoding, bom_bytes=bom_bytes, delimiter=delimiter, is_old_mac=is_old_mac,
        dialect=dialect,
    )  # fmt: skip


def _encoding(head: bytes, far: bytes) -> tuple[str, int]:
    """(codec name, bytes of the mark): mark, NUL pattern, UTF-8, then a guess.

    A file whose non-ASCII lines are mostly UTF-8 is UTF-8 with damaged lines, not another encoding.
    """
    for mark, name in _BOMS:
        if head.startswith(mark) and not (mark == codecs.BOM_UTF32_LE and len(head) < 8):
            return name, len(mark)
    even, odd = head[0:4096:2].count(0), head[1:4096:2].count(0)
    half = max(1, len(head[:4096]) // 2)
    if odd > 0.3 * half and even < 0.1 * half:
        return "utf-16-le", 0
    if even > 0.3 * half and odd < 0.1 * half:
        return "utf-16-be", 0
    lines = [line for line in (head + b"\n" + far).splitlines() if not line.isascii()]
    if len(head) == SAMPLE_BYTES and lines and not far:
        lines = lines[:-1] or lines
    good = sum(_is_utf8(line) for line in lines)
    if not lines or good >= 0.5 * len(lines):
        return "utf-8", 0
    guess = from_bytes(b"\n".join(lines)[:SAMPLE_BYTES]).best()
    name = guess.encoding if guess else "cp1252"
    return ("cp1252" if name in ("latin_1", "ascii", "iso8859_15") else name), 0


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text.encode("utf-8", "surrogatepass"))
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        return False
    return True


def _text_format(text: str, extension: str) -> tuple[Format, str]:
    """(format, delimiter) of decoded text from the head of a file."""
    start = text.lstrip()[:1]
    lines = [line for line in text.splitlines() if line.strip()]
    if extension in ("jsonl", "ndjson"):
        return "jsonl", ","
    if start in ("{", "[") and extension not in ("csv", "tsv", "txt"):
        whole = lines[:50] if len(text) < SAMPLE_BYTES // 2 else lines[:50][:-1] or lines[:1]
        fitting = sum(_is_json(line) and line.lstrip().startswith("{") for line in whole)
        return ("jsonl" if start == "{" and len(lines) > 1 and fitting >= 0.5 * len(whole) else "json"), ","
    if extension == "json":
        return "json", ","
    if extension == "txt" or not lines:
        return "txt", ","
    delimiter, share = _delimiter(lines[:200])
    if extension in ("csv", "tsv"):
        return ("tsv" if delimiter == "\t" else "csv"), delimiter if share else ("\t" if extension == "tsv" else ",")
    if share >= 0.9 and len(lines) > 1:
        return ("tsv" if delimiter == "\t" else "csv"), delimiter
    return "txt", ","


def _delimiter(lines: list[str]) -> tuple[str, float]:
    """The delimiter by which most lines have the same number (two or more) of cells as the first, and that share."""
    best, best_score, best_share = ",", 0.0, 0.0
    for delimiter in DELIMITERS:
        try:
            widths = [len(row) for row in csv.reader(lines, delimiter=delimiter)]
        except csv.Error:
            continue
        if not widths or widths[0] < 2:
            continue
        share = widths.count(widths[0]) / len(widths)
        score = share + 0.001 * min(widths[0], 50)
        if score > best_score:
            best, best_score, best_share = delimiter, score, share
    return best, best_share
