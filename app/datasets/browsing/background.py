"""Indexes and answers are made by a child process of their own, so that no page waits for them and a busy worker does
not hold them up: `python -m app.datasets.browsing.background`, one order on standard input.

Small sets are done at once, in the request. A lock that dies with its process keeps two from doing the same.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from app.contracts.base import Contract
from app.core.config import ROOT
from app.datasets.browsing import index, scanning
from app.datasets.browsing.questions import Question
from app.datasets.browsing.scanning import State
from app.datasets.browsing.sets import RowSet
from app.datasets.edits import EditLayer

if TYPE_CHECKING:
    from app.datasets.browsing.counting import TokenReport
    from app.datasets.browsing.model_view import ReadingModel

AT_ONCE_ROWS = 5_000
_children: dict[Path, "subprocess.Popen[bytes]"] = {}
_guard = threading.Lock()


class Order(Contract):
    """What the child makes: the index of a set, or (with a question) an answer, for which it makes the index first."""

    verb: Literal["index", "answer", "counts"]
    parts: list[str]
    traces: list[str]
    folder: str
    is_frozen: bool
    sources: dict[str, str]
    question: dict[str, object] = {}
    answer: str = ""
    edits: str = ""
    tokenizer_file: str = ""
    model: str = ""
    limit_tokens: int = 0

    def rows(self) -> RowSet:
        """The set."""
        return RowSet(
            tuple(map(Path, self.parts)), tuple(map(Path, self.traces)), Path(self.folder), self.is_frozen, self.sources
        )


def _order(rows: RowSet, verb: Literal["index", "answer", "counts"], **more: object) -> Order:
    values: dict[str, object] = {
        "verb": verb, "parts": [str(p) for p in rows.parts], "traces": [str(p) for p in rows.traces],
        "folder": str(rows.folder), "is_frozen": rows.is_frozen, "sources": rows.sources,
    }  # fmt: skip
    return Order.model_validate(values | more)


def ensure_index(rows: RowSet) -> index.Meta | None:
    """The finished index, or None while a child makes it."""
    if (meta := index.meta_of(rows)) is not None:
        return meta
    rows.folder.mkdir(parents=True, exist_ok=True)
    if rows.rows <= AT_ONCE_ROWS:
        return index.build(rows, lambda _done, _total: None)
    _spawn(rows.folder / "index.lock", _order(rows, "index"))
    return None


def index_progress(rows: RowSet) -> float:
    """How much of the index is made, from 0 to 1."""
    try:
        return float((rows.folder / "index.progress").read_text() or 0)
    except (FileNotFoundError, ValueError):
        return 0.0


def ensure_answer(rows: RowSet, question: Question, stamp: str, edits: Path | None) -> tuple[Path, State]:
    """(the answer's folder, how far it is); begins the scan when nobody does it yet."""
    folder = scanning.answers_dir(rows) / question.key(stamp)
    state = scanning.state_of(folder)
    if state is not None and state.is_done:
        return folder, state
    if rows.rows <= AT_ONCE_ROWS:
        ensure_index(rows)
        temporary = folder.with_name(f".tmp-{folder.name}-{os.urandom(4).hex()}")
        state = scanning.scan(rows, question, EditLayer.load(edits) if edits else EditLayer(), temporary)
        try:
            temporary.rename(folder)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
        scanning.prune(rows)
        return folder, state
    folder.mkdir(parents=True, exist_ok=True)
    more = {"question": question.parts(), "answer": str(folder), "edits": str(edits or "")}
    _spawn(folder / "lock", _order(rows, "answer", **more))
    return folder, state or State(total=rows.rows)


def ensure_counts(rows: RowSet, model: "ReadingModel") -> "TokenReport | None":
    """The counts by the model's tokenizer, or None before there are any. A child goes on until they are of all rows."""
    from app.datasets.browsing import counting

    report = counting.report_of(rows, model)
    if report is not None and report.counted == report.rows:
        return report
    rows.folder.mkdir(parents=True, exist_ok=True)
    more = {"tokenizer_file": str(model.tokenizer_file), "model": model.name, "limit_tokens": model.limit_tokens}
    _spawn(counting.report_path(rows, model).with_suffix(".lock"), _order(rows, "counts", **more))
    return report


def _count(rows: RowSet, order: Order) -> None:
    # Not above: a search must not wait for the tokenizer's library.
    from app.datasets.browsing import counting
    from app.datasets.browsing.model_view import ReadingModel

    model = ReadingModel(order.model, Path(order.tokenizer_file), order.limit_tokens)
    report = counting.report_of(rows, model)
    if report is None or report.counted < report.rows:
        counting.count(rows, model, lambda _done, _total: None)


def _spawn(lock: Path, order: Order) -> None:
    """Start a child unless one holds the lock."""
    with _guard:
        for path in [path for path, child in _children.items() if child.poll() is not None]:
            del _children[path]
        if lock in _children:
            return
        with _locked(lock) as is_free:
            if not is_free:
                return
        environment = {
            "PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1",
            "ARROW_DEFAULT_MEMORY_POOL": "system", "POLARS_MAX_THREADS": "1",
        }  # fmt: skip
        child = subprocess.Popen(
            [sys.executable, "-m", "app.datasets.browsing.background", str(lock)],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        assert child.stdin is not None
        child.stdin.write(order.model_dump_json().encode())
        child.stdin.close()
        _children[lock] = child


@contextmanager
def _locked(path: Path, *, is_waiting: bool = False) -> Iterator[bool]:
    """Hold the lock file; gives False when another process does (and `is_waiting` is not set)."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if is_waiting else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def _index(rows: RowSet) -> None:
    """Make the index, or wait for the process that does."""
    with _locked(rows.folder / "index.lock", is_waiting=True):
        progress = rows.folder / "index.progress"

        def tell(done: int, total: int) -> None:
            progress.write_text(f"{done / max(1, total):.4f}")

        index.build(rows, tell)


def main(lock: Path) -> int:
    """Obey the order on standard input."""
    order = Order.model_validate_json(sys.stdin.buffer.read())
    rows = order.rows()
    if order.verb == "index":
        os.nice(5)
        _index(rows)
        return 0
    with _locked(lock) as is_free:
        if not is_free:
            return 0
        if order.verb == "counts":
            os.nice(5)
            _count(rows, order)
            return 0
        if index.meta_of(rows) is None:
            _index(rows)
        layer = EditLayer.load(order.edits) if order.edits else EditLayer()
        folder = Path(order.answer)
        scanning.scan(rows, Question.model_validate(order.question), layer, folder, lambda: not folder.exists())
        scanning.prune(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
