"""Lines of a text file, decoded one by one: a damaged line is named and never stops the others."""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from app.datasets.reading.context import Context
from app.datasets.reading.sniffed import Sniffed

CHUNK_BYTES = 1 << 20
LINE_LIMIT_BYTES = 32 * 1024 * 1024


class Line(NamedTuple):
    """`code` is empty, decode.fallback, decode.replaced or line.too_long; `text` has no line end."""

    number: int
    text: str
    raw: bytes
    code: str = ""


def read_lines(path: Path, sniffed: Sniffed, context: Context | None = None) -> Iterator[Line]:
    """Every line of the file, in order, numbered from 1; memory is bounded by 32 MiB a line.

    The bytes that were read are counted in `context`.
    """
    wide = sniffed.encoding.startswith(("utf-16", "utf-32"))
    found = _wide_lines(path, sniffed, context) if wide else _byte_lines(path, sniffed, context)
    for number, (raw, is_cut) in enumerate(found, 1):
        if is_cut:
            yield Line(number, "", raw, "line.too_long")
        elif wide:
            text = raw.decode("utf-8", "surrogatepass")
            yield Line(number, text, raw, "decode.replaced" if "�" in text else "")
        else:
            yield _decoded(number, raw, sniffed.encoding)


def read_utf8(path: Path, sniffed: Sniffed, context: Context | None = None) -> Iterator[bytes]:
    """The file as UTF-8 in pieces of some length, for readers that find the ends of rows by themselves.

    What cannot be decoded is decoded as by `read_lines`; a single line may be as long as the file.
    """
    if sniffed.encoding.startswith(("utf-16", "utf-32")):
        pieces = _narrowed(path, sniffed, context)
    else:
        whole = _whole_characters(_chunks(path, sniffed, context))
        pieces = (_recoded(piece, sniffed.encoding) for piece in whole)
    for piece in pieces:
        yield piece.replace(b"\r", b"\n") if sniffed.is_old_mac else piece


def _whole_characters(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Cut after a line end, a quote or a comma: in no encoding that we read are these a part of another character."""
    rest = b""
    for chunk in chunks:
        rest += chunk
        cut = max(rest.rfind(b"\n"), rest.rfind(b'"'), rest.rfind(b",")) + 1
        if not cut and len(rest) > LINE_LIMIT_BYTES:
            cut = len(rest)
        if cut:
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _recoded(piece: bytes, encoding: str) -> bytes:
    try:
        return piece.decode(encoding).encode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        lines = (_decoded(0, line, encoding).text for line in piece.split(b"\n"))
        return "\n".join(lines).encode("utf-8", "surrogatepass")


def _decoded(number: int, raw: bytes, encoding: str) -> Line:
    try:
        return Line(number, raw.decode(encoding), raw)
    except UnicodeDecodeError:
        pass
    if encoding == "utf-8":
        try:
            return Line(number, raw.decode("cp1252"), raw, "decode.fallback")
        except UnicodeDecodeError:
            pass
    return Line(number, raw.decode(encoding, "replace"), raw, "decode.replaced")


def _chunks(path: Path, sniffed: Sniffed, context: Context | None) -> Iterator[bytes]:
    with path.open("rb") as stream:
        stream.seek(sniffed.bom_bytes)
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk
            if context is not None:
                context.done_bytes += len(chunk)


def _byte_lines(path: Path, sniffed: Sniffed, context: Context | None) -> Iterator[tuple[bytes, bool]]:
    yield from _cut(_chunks(path, sniffed, context), b"\r" if sniffed.is_old_mac else b"\n")


def _wide_lines(path: Path, sniffed: Sniffed, context: Context | None) -> Iterator[tuple[bytes, bool]]:
    """UTF-16 and UTF-32 become UTF-8 on the way, so that one splitter serves all."""
    yield from _cut(_narrowed(path, sniffed, context), b"\r" if sniffed.is_old_mac else b"\n")


def _narrowed(path: Path, sniffed: Sniffed, context: Context | None) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(sniffed.encoding)("replace")
    for data in _chunks(path, sniffed, context):
        yield decoder.decode(data).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", True).encode("utf-8", "surrogatepass")


def _cut(chunks: Iterator[bytes], end: bytes) -> Iterator[tuple[bytes, bool]]:
    """(line without its end, whether it was over the limit and only its first 4 KiB are given)."""
    parts: list[bytes] = []
    size, is_cut = 0, False
    for chunk in chunks:
        pieces = chunk.split(end)
        for index, piece in enumerate(pieces):
            if size + len(piece) > LINE_LIMIT_BYTES:
                parts, is_cut = [b"".join([*parts, piece[:4096]])[:4096]], True
            elif not is_cut:
                parts.append(piece)
            size += len(piece)
            if index < len(pieces) - 1:
                yield b"".join(parts).removesuffix(b"\r"), is_cut
                parts, size, is_cut = [], 0, False
    if size:
        yield b"".join(parts).removesuffix(b"\r"), is_cut
