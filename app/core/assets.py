"""The static files, read once: joined, compressed, and named by the hash of the whole tree.

Used by templates (`asset()`) and by the route that serves them (core.pages).
"""

import gzip
import hashlib
import mimetypes
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

STATIC = Path(__file__).parents[2] / "static"
BUNDLES = {
    "app.css": ("css", "*.css"), "chart.css": ("css/chart", "*.css"), "rows.css": ("css/rows", "*.css"),
    "clean.css": ("css/clean", "*.css"), "runs.css": ("css/runs", "*.css"), "chat.css": ("css/chat", "*.css"),
    "evaluate.css": ("css/evaluate", "*.css"),
    "app.js": ("js/shell", "*.js"),
}  # fmt: skip
COMPRESSED = {".css", ".js", ".svg", ".txt", ".json", ".webmanifest"}
# Comments, and blanks where CSS does not need them; none of our strings holds these signs.
_SHORTER = [(rb"/\*.*?\*/", b""), (rb"\s*([{};,])\s*", rb"\1"), (rb":\s+", b":"), (rb";}", b"}"), (rb"\s+", b" ")]
mimetypes.add_type("font/woff2", ".woff2")
mimetypes.add_type("text/javascript", ".js")


@dataclass(frozen=True)
class Asset:
    """One file as it is sent: its bytes, the same gzipped (None where that gains nothing), its media type."""

    body: bytes
    gzipped: bytes | None
    media_type: str


class Assets:
    """All files below `root`, and the bundles made of them, in memory (about half a megabyte)."""

    def __init__(self, root: Path) -> None:
        files = {
            path.relative_to(root).as_posix(): _as_sent(path)
            for path in sorted(root.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }
        for name, (folder, pattern) in BUNDLES.items():
            files[name] = b"\n".join(_part(path) for path in sorted((root / folder).glob(pattern)))
        digest = hashlib.sha256()
        for name, body in files.items():
            digest.update(f"{name}\0{len(body)}\0".encode() + body)
        self.version = digest.hexdigest()[:12]
        self._files = {name: _asset(name, body) for name, body in files.items()}

    def get(self, name: str) -> Asset | None:
        return self._files.get(name)

    def url(self, name: str) -> str:
        """The address of a file, good for ever. Raises KeyError for a file that does not exist."""
        if name not in self._files:
            raise KeyError(f"no static file {name}")
        return f"/static/{self.version}/{name}"


def _as_sent(path: Path) -> bytes:
    body = path.read_bytes()
    return _without_comments(body) if path.suffix == ".js" and path.parent.name == "elements" else body


def _without_comments(script: bytes) -> bytes:
    """Our scripts keep their comments on lines of their own; those are not for the browser."""
    return re.sub(rb"^[ \t]*//[^\n]*\n", b"", script, flags=re.MULTILINE)


def _part(path: Path) -> bytes:
    body = path.read_bytes()
    if path.suffix == ".js":
        # A block of its own for each script, so that their constants do not meet.
        return b"{\n" + _without_comments(body) + b"}\n"
    for pattern, shorter in _SHORTER:
        body = re.sub(pattern, shorter, body, flags=re.DOTALL)
    return body.strip()


def _asset(name: str, body: bytes) -> Asset:
    suffix = Path(name).suffix
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    if media_type.startswith("text/") or suffix == ".svg":
        media_type += "; charset=utf-8"
    gzipped = gzip.compress(body, 9, mtime=0) if suffix in COMPRESSED else None
    return Asset(body, gzipped, media_type)


def _stamp() -> float:
    return max(path.stat().st_mtime for path in STATIC.rglob("*"))


@lru_cache(maxsize=1)
def _read(stamp: float) -> Assets:
    return Assets(STATIC)


_fixed: Assets | None = None


def assets(*, follow_changes: bool = False) -> Assets:
    """The files as read at the first call; with `follow_changes` read again when one has changed."""
    global _fixed
    if follow_changes:
        return _read(_stamp())
    if _fixed is None:
        _fixed = Assets(STATIC)
    return _fixed
