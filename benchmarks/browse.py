"""Looking through five million rows: seconds to the first page, the filtered one, the deep one and the first hits.

Run with `python benchmarks/browse.py --rows 5000000 --folder DIR`. It makes a working set from a seed, serves it with
the real web process, and asks for pages as a browser does, first alone and then while a preparation runs beside it.
Exits with 1 when the server takes more than 50 ms (p95, its own log says) for a page, or more than 2 GB of memory.
"""

import argparse
import itertools
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
POOL_ROWS, PART_ROWS, GROUP_ROWS = 100_000, 250_000, 10_000
BAR_MS, BAR_BYTES = 50.0, 2 * 2**30
RARE = "(4999991)"


def make_set(folder: Path, count: int, seed: int = 1) -> None:
    """A working set of `count` rows in parts, with its trace: the same seed gives the same rows."""
    from app.datasets.tables import EXAMPLES, MESSAGES
    from app.datasets.writing import TRACE
    from benchmarks.make_rows import rows as made_rows

    if (folder / "made.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    pool = list(made_rows(POOL_ROWS, seed))
    questions = pa.array([re.sub(r" \(\d+\)", "", q.encode("utf-8", "replace").decode()) for q, _a, _k in pool])
    answers = pa.array([a.encode("utf-8", "replace").decode() for _q, a, _k in pool])
    draw = np.random.default_rng(seed)
    for part, start in enumerate(range(0, count, PART_ROWS)):
        size = min(PART_ROWS, count - start)
        numbers = np.arange(start, start + size)
        ends = pc.binary_join_element_wise(" (", pc.cast(pa.array(numbers), pa.string()), ")", "")
        asked = pc.binary_join_element_wise(questions.take(pa.array(draw.integers(0, POOL_ROWS, size))), ends, "")
        answered = answers.take(pa.array(draw.integers(0, POOL_ROWS, size)))
        order = np.stack([np.arange(size), np.arange(size) + size], 1).ravel()
        turns = 2 * size
        values = {
            "role": pa.array(["user", "assistant"] * size),
            "content": pa.concat_arrays([asked, answered]).take(pa.array(order)),
            "train": pa.array([False, True] * size),
        }  # fmt: skip
        struct = pa.StructArray.from_arrays(
            [values.get(f.name, pa.nulls(turns, f.type)) for f in MESSAGES.value_type], fields=list(MESSAGES.value_type)
        )
        messages = pa.ListArray.from_arrays(pa.array(np.arange(0, turns + 1, 2), pa.int32()), struct)
        columns = {
            "_rid": pa.array(numbers), "_file": pa.array(["benchmarkfile0000001"] * size), "_row": pa.array(numbers),
            "kind": pa.array(["chat"] * size), "messages": messages, "text": pa.array([""] * size),
            "label": pa.array([f"label {i % 12}" for i in numbers]), "meta": pa.array(["{}"] * size),
        }  # fmt: skip
        _write(folder / f"data-{part:05d}.parquet", EXAMPLES, columns, size)
        kept = {
            "_rid": pa.array(numbers), "status": pa.array(["kept"] * size), "codes": pa.array(["fix.space"] * size),
            "changed": pa.array((numbers % 9 == 0) * 2, pa.uint32()), "language": pa.array(["en"] * size),
            "quality": pa.array(draw.integers(0, 100, size).astype(np.float32)),
        }  # fmt: skip
        _write(folder / f"trace-{part:05d}.parquet", TRACE, kept, size)
    (folder / "made.json").write_text(json.dumps({"rows": count, "seed": seed}))


def _write(path: Path, schema: pa.Schema, columns: dict[str, Any], size: int) -> None:
    arrays = [columns[f.name] if f.name in columns else pa.nulls(size, f.type) for f in schema]
    arrays = [a.cast(f.type) if a.type != f.type else a for a, f in zip(arrays, schema, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=schema)
    pq.write_table(table, path, compression="zstd", compression_level=3, row_group_size=GROUP_ROWS)


def make_home(home: Path, made: Path) -> tuple[str, str]:
    """A home with a person and a project whose working set lies in `made`; (cookie, project id)."""
    os.environ["GPT_BUILDER_HOME"] = str(home)
    from app.core import db
    from app.core.config import get_settings
    from app.core.db import new_id, transaction
    from app.core.storage import working_dir
    from app.datasets.models import CleaningPlan, SourceFile
    from app.models import Base
    from tests.visitors import make_person, make_project

    # Whoever calls this may have read the settings of another home before.
    get_settings.cache_clear()
    Base.metadata.create_all(db.get_engine())
    person = make_person()
    project_id = make_project(person.workspace_id, "Five million rows")
    with transaction() as session:
        plan = CleaningPlan(id=new_id(), project_id=project_id, state="succeeded", set_key="set-1")
        file = SourceFile(id="benchmarkfile0000001", project_id=project_id, filename="rows.jsonl", size_bytes=1,
                          state="succeeded")  # fmt: skip
        session.add_all([plan, file])
    (working_dir(plan.id) / "set-1").symlink_to(made.resolve(), target_is_directory=True)
    return person.cookie, project_id


SERVE = (
    "import uvicorn; from app.core import logging; logging.configure(True);"
    "uvicorn.run('app.main:create_app', factory=True, port=0, log_config=None, access_log=False)"
)


class Served(NamedTuple):
    """The web process: its address, itself, and the log that says how long each answer took it."""

    url: str
    process: psutil.Process
    log: Path

    def times(self, since: int, path: str) -> list[float]:
        """Milliseconds the server took for each page of `path`, from the place `since` in the log on."""
        with self.log.open("rb") as lines:
            lines.seek(since)
            found = [json.loads(line) for line in lines if b'"elapsed_ms"' in line]
        return [line["elapsed_ms"] for line in found if line["path"] == path]

    def end(self) -> int:
        """The place in the log that it has come to."""
        return self.log.stat().st_size


@contextmanager
def served(home: Path) -> Iterator[Served]:
    """The web process on a free port."""
    environment = os.environ | {
        "GPT_BUILDER_HOME": str(home), "PYTHONPATH": str(ROOT), "GPT_BUILDER_LOG_JSON": "true",
    }  # fmt: skip
    log = home / "web.log"
    with log.open("wb") as out:
        child = subprocess.Popen([sys.executable, "-c", SERVE], cwd=ROOT, env=environment, stdout=out, stderr=out)
    try:
        while not (found := re.search(r"http://[\d.]+:\d+", log.read_text())):
            assert child.poll() is None, log.read_text()
            time.sleep(0.1)
        yield Served(found.group(), psutil.Process(child.pid), log)
    finally:
        child.terminate()
        child.wait()


def measure(browser: httpx.Client, web: Served, addresses: Callable[[], str], count: int) -> dict[str, float]:
    """Milliseconds a page: median and 95th percentile at the browser and in the server, and its processor time."""
    path, since = addresses().split("?")[0], web.end()
    browser.get(addresses())
    before, taken = _cpu(web.process), []
    for _ in range(count):
        address, begun = addresses(), time.perf_counter()
        assert browser.get(address).status_code == 200, address
        taken.append(1000 * (time.perf_counter() - begun))
    cpu = 1000 * (_cpu(web.process) - before) / count
    # A line is written after its answer has left; the first one warmed up.
    while len(server := web.times(since, path)[1:]) < count:
        time.sleep(0.05)
    return {
        "p50": float(np.percentile(taken, 50)), "p95": float(np.percentile(taken, 95)), "cpu": cpu,
        "server_p50": float(np.percentile(server, 50)), "server_p95": float(np.percentile(server, 95)),
    }  # fmt: skip


def pages_of(table: str, rows: int, draw: random.Random) -> dict[str, Callable[[], str]]:
    """Addresses of the kinds of page that are measured."""
    last = rows // 100
    return {
        "first page": lambda: table,
        "deep page": lambda: f"{table}?page={draw.randint(1, last)}",
        "filtered page": lambda: f"{table}?label=label+3&least=60&sort=-length&page={draw.randint(1, 1000)}",
        "page of a search": lambda: f"{table}?q=bread&page={draw.randint(1, 200)}",
    }


class Looker(threading.Thread):
    """Somebody who looks through the rows, a page every quarter of a second, until told to stop."""

    def __init__(self, browser: httpx.Client, web: Served, table: str, rows: int) -> None:
        super().__init__(daemon=True)
        self._browser, self._web, self._table = browser, web, table
        self._pages = list(pages_of(table, rows, random.Random(5)).values())
        self._since, self._is_over = web.end(), threading.Event()

    def run(self) -> None:
        for number in itertools.count():
            if self._is_over.wait(0.25):
                return
            assert self._browser.get(self._pages[number % len(self._pages)]()).status_code == 200

    def told(self) -> list[float]:
        """Milliseconds the server took for each page since this was asked last."""
        times = self._web.times(self._since, self._table)
        self._since = self._web.end()
        return times

    def end(self) -> None:
        self._is_over.set()
        self.join()


@contextmanager
def looking(folder: Path, rows: int) -> Iterator[tuple[Looker, Served]]:
    """Somebody looks through a made set of so many rows while the block runs; its index and answers are there."""
    made = folder / f"set-{rows}"
    make_set(made, rows)
    home = folder / f"home-{os.getpid()}"
    home.mkdir(parents=True, mode=0o700)
    cookie, project_id = make_home(home, made)
    with served(home) as web, httpx.Client(base_url=web.url, cookies={"sid": cookie}, timeout=120) as browser:
        table = f"/projects/{project_id}/rows"
        for address in (table, f"{table}?q=bread", f"{table}?label=label+3&least=60&sort=-length"):
            until_done(browser, address)
        looker = Looker(browser, web, table, rows)
        looker.start()
        try:
            yield looker, web
        finally:
            looker.end()


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def until_done(browser: httpx.Client, address: str) -> tuple[float, float]:
    """(seconds until the first hits were on the page, until the answer was whole)."""
    begun, first = time.perf_counter(), 0.0
    while True:
        page = browser.get(address).text
        if not first and 'class="rows-link"' in page:
            first = time.perf_counter() - begun
        if "rows-working" not in page:
            return first or time.perf_counter() - begun, time.perf_counter() - begun
        time.sleep(0.1)


@contextmanager
def preparing(folder: Path) -> Iterator[None]:
    """A real preparation of a hundred thousand rows, again and again, on two processes."""
    from app.datasets.child import PrepareOrder
    from app.datasets.mapping import Mapping
    from app.datasets.plan import Plan, PlannedFile
    from app.datasets.steps.catalogue import STEPS
    from app.datasets.steps.contract import ChosenStep
    from app.datasets.tables import RowWriter
    from benchmarks.make_rows import rows as made_rows

    source = folder / "source"
    if not source.exists():
        source.mkdir(parents=True)
        writer = RowWriter(source)
        for number, (question, answer, _kind) in enumerate(made_rows(100_000, 2)):
            writer.add(number, {"question": question, "answer": answer})
        writer.flush()
    mapping = Mapping(shape="pair", prompt="{question}", answer="{answer}")
    file = PlannedFile(
        file_id="f", filename="f.jsonl", sha256="0" * 64, rows=100_000, rows_dir=str(source), mapping=mapping
    )
    steps = [ChosenStep(name=name, version=step.version) for name, step in STEPS.items()]
    loop = (
        "import subprocess, sys, itertools\n"
        "for n in itertools.count():\n"
        "    order = sys.argv[1].replace('OUT', f'out-{n}')\n"
        "    child = [sys.executable, '-m', 'app.datasets.child']\n"
        "    subprocess.run(child, input=order.encode(), stdout=subprocess.DEVNULL)\n"
    )
    order = PrepareOrder(
        plan=Plan(files=[file], steps=steps), out_dir=str(folder / "OUT"), processes=2
    ).model_dump_json()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", loop, order + "\n"], cwd=ROOT, env=environment, start_new_session=True
    )
    try:
        yield
    finally:
        os.killpg(child.pid, 9)
        child.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--count", type=int, default=60)
    given = parser.parse_args()
    made = given.folder / f"set-{given.rows}"
    begun = time.perf_counter()
    make_set(made, given.rows)
    print(f"{given.rows:,} rows made in {time.perf_counter() - begun:.0f} s", flush=True)
    home = given.folder / f"home-{os.getpid()}"
    home.mkdir(parents=True, mode=0o700)
    cookie, project_id = make_home(home, made)
    draw = random.Random(3)
    is_missed = False
    with served(home) as web, httpx.Client(base_url=web.url, cookies={"sid": cookie}, timeout=120) as browser:
        table = f"/projects/{project_id}/rows"
        asked = pages_of(table, given.rows, draw)
        report("before the index", measure(browser, web, asked["deep page"], 20))
        _first, whole = until_done(browser, table)
        print(f"index: {whole:.0f} s, {given.rows / max(whole, 1e-9):,.0f} rows/s", flush=True)
        for term in ("bread", RARE, "nothing has this"):
            first, whole = until_done(browser, f"{table}?q={term}")
            print(f"search “{term}”: first hits after {first:.2f} s, all after {whole:.1f} s", flush=True)
        first, whole = until_done(browser, f"{table}?label=label+3&least=60&sort=-length")
        print(f"filter and order: {whole:.1f} s", flush=True)
        for name, addresses in asked.items():
            is_missed |= report(name, measure(browser, web, addresses, given.count))
        with preparing(given.folder / "preparing"):
            for name, addresses in asked.items():
                is_missed |= report(f"{name}, while preparing", measure(browser, web, addresses, given.count))
            first, whole = until_done(browser, f"{table}?q=garden")
            print(f"search while preparing: first hits after {first:.2f} s, all after {whole:.1f} s", flush=True)
        memory, peak = web.process.memory_info().rss, peak_bytes(web.process)
        print(f"web process: {memory / 2**20:.0f} MB, at most {peak / 2**20:.0f} MB")
        is_missed |= peak > BAR_BYTES
    return int(is_missed)


def peak_bytes(process: psutil.Process) -> int:
    """The most that was resident of it at once."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def report(name: str, found: dict[str, float]) -> bool:
    """Print a line; whether the bar was missed."""
    print(
        f"{name}: server p50 {found['server_p50']:.1f} ms, p95 {found['server_p95']:.1f} ms; at the browser p50"
        f" {found['p50']:.1f} ms, p95 {found['p95']:.1f} ms; processor {found['cpu']:.1f} ms",
        flush=True,
    )
    return found["server_p95"] > BAR_MS


if __name__ == "__main__":
    sys.exit(main())
