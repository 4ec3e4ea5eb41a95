"""JSON and JSONL: rows of a long list are read one by one, so a broken row is named and costs only itself."""

import ast
import json
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from app.datasets.findings import RAW_LIMIT_BYTES, Problem, Record, Refused
from app.datasets.options import ReadOptions
from app.datasets.reading import json_values
from app.datasets.reading.context import Context
from app.datasets.reading.lines import LINE_LIMIT_BYTES, read_lines, read_utf8
from app.datasets.reading.sniffed import Sniffed

DEPTH_LIMIT = 64
OBJECT_LIMIT_BYTES = 256 * 1024 * 1024
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)
_SPACE = b" \t\r\n"


def read_json_lines(
    path: Path, sniffed: Sniffed, options: ReadOptions, context: Context | None = None
) -> Iterator[Record | Problem]:
    """One value a line."""
    for line in read_lines(path, sniffed, context):
        if line.code == "line.too_long":
            yield Problem(line.number, line.code, line.raw)
        elif not line.text.strip():
            yield Problem(line.number, "line.empty", is_kept=True)
        else:
            keep = not line.code or options.wrong_encoding == "repair"
            if line.code:
                yield Problem(line.number, line.code, line.raw[:RAW_LIMIT_BYTES], is_kept=keep)
            if keep:
                yield from _parsed(line.number, line.text.encode("utf-8", "surrogatepass"), options)


def read_json(
    path: Path, sniffed: Sniffed, options: ReadOptions, context: Context | None = None
) -> Iterator[Record | Problem]:
    """A list of rows (streamed), an object that holds one, or a single object. Raises Refused over 256 MiB."""
    stream = _Bytes(path, sniffed, context)
    start = stream.first()
    if start == b"[":
        yield from _elements(stream, options)
        return
    whole = stream.rest(OBJECT_LIMIT_BYTES)
    if whole is None:
        raise Refused("This JSON file is one object of over 256 MB. Save its rows as JSONL, then bring that.")
    found = list(_parsed(1, whole, options))
    record = next((item for item in found if isinstance(item, Record)), None)
    rows = max(
        (v for v in (record.values.values() if record else ()) if isinstance(v, list) and _is_rows(v)),
        key=len,
        default=None,
    )
    if rows is None:
        yield from found
        return
    yield from (item for item in found if isinstance(item, Problem))
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield Record(number, row)
        else:
            yield Problem(number, "json.not_object", orjson.dumps(row)[:RAW_LIMIT_BYTES])


def _is_rows(values: list[Any]) -> bool:
    return bool(values) and sum(isinstance(v, dict) for v in values) >= 0.9 * len(values)


class _Bytes:
    """The file as UTF-8, handed out from a growing window; counts the lines that were passed."""

    def __init__(self, path: Path, sniffed: Sniffed, context: Context | None) -> None:
        self._pieces = read_utf8(path, sniffed, context)
        self.window = bytearray()
        self.line = 1
        self.is_ended = False

    def grow(self) -> bool:
        """Add at least a quarter of what is there (so that long rows cost linear time); false at the end."""
        wanted = len(self.window) + max(1 << 18, len(self.window) // 4)
        while len(self.window) < wanted:
            piece = next(self._pieces, None)
            if piece is None:
                self.is_ended = True
                break
            self.window += piece
        return not self.is_ended

    def drop(self, count: int) -> bytes:
        """Take `count` bytes off the front."""
        taken = bytes(self.window[:count])
        del self.window[:count]
        self.line += taken.count(b"\n")
        return taken

    def first(self) -> bytes:
        """The first byte that is no space; what stands before it is dropped."""
        while True:
            stripped = self.window.lstrip(_SPACE)
            if stripped or self.is_ended:
                self.drop(len(self.window) - len(stripped))
                return bytes(self.window[:1])
            self.grow()

    def rest(self, limit: int) -> bytes | None:
        """Everything that is left, or None when it is over `limit`."""
        while not self.is_ended and len(self.window) <= limit:
            self.grow()
        return bytes(self.window) if len(self.window) <= limit else None


def _elements(stream: _Bytes, options: ReadOptions) -> Iterator[Record | Problem]:
    """The values of a top-level list. Splits at commas of depth 0 by a pattern that skips whole texts."""
    stream.drop(1)
    place, depth, is_closed, count = 0, 0, False, 0
    while not is_closed:
        match = _TOKEN.search(stream.window, place)
        quote = stream.window.find(b'"', place)
        if match is None or (0 <= quote < match.start()):
            # No structure ahead, or a text that is not whole yet: more bytes, or the end.
            if len(stream.window) > LINE_LIMIT_BYTES:
                raise Refused(f"A row near line {stream.line} is over 32 MB. Split it, then bring the file again.")
            place = quote if quote >= 0 else len(stream.window)
            if stream.is_ended:
                break
            stream.grow()
            continue
        token, place = match.group(), match.end()
        if token in (b"[", b"{"):
            depth += 1
        elif token in (b"]", b"}") and depth:
            depth -= 1
        elif token == b"]" or (token == b"," and depth == 0):
            is_closed = token == b"]"
            element, line = _take(stream, place)
            place = 0
            count += 1
            if not (is_closed and count == 1 and not element):
                yield from _parsed(line, element, options)
    if not is_closed:
        element, line = _take(stream, len(stream.window) + 1)
        if element:
            yield from _parsed(line, element, options)
        yield Problem(stream.line, "json.unclosed", element[:RAW_LIMIT_BYTES], is_kept=True)
    elif stream.first():
        yield Problem(stream.line, "json.invalid", bytes(stream.window[:RAW_LIMIT_BYTES]), "text after the list")


def _take(stream: _Bytes, count: int) -> tuple[bytes, int]:
    """(the element before the delimiter at `count - 1`, the line on which it starts)."""
    taken = stream.window[: count - 1]
    lead = len(taken) - len(taken.lstrip(_SPACE))
    line = stream.line + taken[:lead].count(b"\n")
    stream.drop(count)
    return bytes(taken.strip(_SPACE)), line


def _depth(raw: bytes) -> int:
    """Deepest nesting, at most as far as it matters."""
    depth = deepest = 0
    for match in _TOKEN.finditer(raw):
        token = match.group()
        if token in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
            if deepest > DEPTH_LIMIT:
                break
        elif token in (b"]", b"}"):
            depth -= 1
    return deepest


def _parsed(line: int, raw: bytes, options: ReadOptions) -> Iterator[Record | Problem]:
    head = raw[:RAW_LIMIT_BYTES]
    if raw.count(b"[") + raw.count(b"{") > DEPTH_LIMIT and _depth(raw) > DEPTH_LIMIT:
        yield Problem(line, "json.depth", head)
        return
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        doubled: list[str] = []
        value = repaired(raw, json_values.pairing(options, doubled)) if options.bad_json == "repair" else None
        if value is None:
            yield Problem(line, "json.invalid", head, str(error).split(":")[0][:120])
            return
        yield Problem(line, "json.repaired", head, is_kept=True)
        found = json_values.exact(value, doubled)
    else:
        if not isinstance(value, dict):
            yield Problem(line, "json.not_object", head)
            return
        if json_values.is_whole(raw, value):
            yield Record(line, value)
            return
        found = json_values.kept(raw, options)
    notes = json_values.problem_notes(found, options)
    for code, note, is_kept in notes:
        yield Problem(line, code, head, note, is_kept=is_kept)
    if all(is_kept for _code, _note, is_kept in notes):
        yield Record(line, found.value)


def repaired(raw: bytes, paired: json_values.Pairing) -> dict[str, Any] | None:
    """The object meant by almost-JSON: extra commas, single quotes, Python's constants; None when unsure."""
    text = raw.decode("utf-8", "replace").strip().rstrip(",;").strip()
    if not text.startswith("{"):
        return None
    for attempt in (text, re.sub(r",\s*([}\]])", r"\1", text)):
        try:
            value = json.loads(attempt, object_pairs_hook=paired)
            break
        except (ValueError, RecursionError):
            continue
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(re.sub(r"\b(null|true|false)\b", _python_constant, text), mode="eval")
                if any(_has_doubled_key(node) for node in ast.walk(tree) if isinstance(node, ast.Dict)):
                    return None
                value = ast.literal_eval(tree)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    return value if isinstance(value, dict) and _is_plain(value) else None


def _has_doubled_key(node: ast.Dict) -> bool:
    keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
    return len(set(keys)) < len(keys)


def _python_constant(match: re.Match[str]) -> str:
    return {"null": "None", "true": "True", "false": "False"}[match.group()]


def _is_plain(value: Any) -> bool:
    """Whether the value is JSON: text keys, finite numbers, no sets or bytes."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(_is_plain(v) for v in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int | bool)
