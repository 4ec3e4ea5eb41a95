"""What a file is, told from its bytes and not from its name: format, encoding, delimiter, or a refusal."""

import codecs
import csv
import re
from pathlib import Path
from typing import Literal

import orjson
from charset_normalizer import from_bytes
from pydantic import Field

from app.contracts.base import Contract
from app.datasets.findings import Refused

SAMPLE_BYTES = 256 * 1024
DELIMITERS = ",;\t|"
Format = Literal["csv", "tsv", "json", "jsonl", "parquet", "txt"]

_REFUSED_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\x7fELF", "This is a program, not text."),
    (b"MZ", "This is a Windows program, not text."),
    (b"\xcf\xfa\xed\xfe", "This is a program, not text."),
    (b"\xca\xfe\xba\xbe", "This is a program, not text."),
    (
        b"PK\x03\x04",
        "This is a ZIP archive, or a Word or Excel file. Unpack it, or save the table as CSV, then bring that.",
    ),
    (b"PK\x05\x06", "This is an empty ZIP archive."),
    (b"\x1f\x8b", "This is packed with gzip. Unpack it first, then bring the file that was inside."),
    (b"BZh", "This is packed with bzip2. Unpack it first, then bring the file that was inside."),
    (b"\xfd7zXZ\x00", "This is packed with xz. Unpack it first, then bring the file that was inside."),
    (b"\x28\xb5\x2f\xfd", "This is packed with zstd. Unpack it first, then bring the file that was inside."),
    (b"7z\xbc\xaf\x27\x1c", "This is a 7-Zip archive. Unpack it first, then bring the files that were inside."),
    (b"Rar!", "This is a RAR archive. Unpack it first, then bring the files that were inside."),
    (b"%PDF", "This is a PDF. Save its text as TXT, then bring that."),
    (b"\xd0\xcf\x11\xe0", "This is an old Word or Excel file. Save the table as CSV, then bring that."),
    (b"SQLite format 3", "This is a database. Export the table as CSV, then bring that."),
    (b"\x89HDF", "This is an HDF5 file. Export the table as CSV or Parquet, then bring that."),
    (b"\x93NUMPY", "This is a NumPy file. Export the table as CSV or Parquet, then bring that."),
    (b"ARROW1", "This is an Arrow file. Save it as Parquet, then bring that."),
    (b"\x89PNG", "This is a picture. We learn from text."),
    (b"\xff\xd8\xff", "This is a picture. We learn from text."),
    (b"GIF8", "This is a picture. We learn from text."),
    (b"OggS", "This is a sound recording. We learn from text."),
    (b"ID3", "This is a sound recording. We learn from text."),
)
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_WEB_PAGE = re.compile(rb"\s*(<!doctype html|<html|<svg|<\?xml)", re.IGNORECASE)
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Sniffed(Contract):
    """How a file will be read. Everything here may be corrected by a person."""

    format: Format
    encoding: str = Field("utf-8", max_length=40)
    bom_bytes: int = 0
    delimiter: str = Field(",", min_length=1, max_length=1)
    has_header: bool = True
    is_old_mac: bool = Field(False, description="lines end with a carriage return alone")


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
    if head.startswith(b"PAR1"):
        return Sniffed(format="parquet")
    encoding, bom_bytes = _encoding(head, far)
    try:
        text = head[bom_bytes:].decode(encoding, "replace")
    except LookupError as error:
        raise Refused(f"The encoding {encoding} is not known here. Save the file as UTF-8.") from error
    if "\0" in text[:4096]:
        raise Refused("This is not a text file. Bring CSV, TSV, JSON, JSONL, Parquet or TXT.")
    if _WEB_PAGE.match(head[bom_bytes:]):
        raise Refused("This is a web page or a drawing. Save its text as TXT, then bring that.")
    is_old_mac = "\n" not in text and "\r" in text
    extension = filename.lower().rsplit(".", 1)[-1]
    kind, delimiter = _text_format(text.replace("\r", "\n") if is_old_mac else text, extension)
    return Sniffed(format=kind, encoding=encoding, bom_bytes=bom_bytes, delimiter=delimiter, is_old_mac=is_old_mac)


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
