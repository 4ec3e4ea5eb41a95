"""Import, standard preset and freezing of made rows, in the limited child processes that the worker starts.

The memory of every process below this one is read from `/proc` every 0.2 s: `RSS` is all that is resident, `own` leaves
mapped files out (they are the page cache's and given back when memory is short). Exit status 1 when a process holds
more than 2 GB of its own, when a step fails, or when a million rows take more than 150 s from file to version.

    python benchmarks/data_scale.py --rows 1000000 --folder DIRECTORY

With `--browse` somebody looks through another five million rows all the while, and the server may take 50 ms for a page
at the 95th percentile.
"""

import argparse
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.datasets.child import FreezeOrder, ImportOrder, Order, PrepareOrder  # noqa: E402
from app.datasets.mapping import Mapping  # noqa: E402
from app.datasets.plan import Plan, PlannedFile  # noqa: E402
from app.datasets.steps.catalogue import of_preset  # noqa: E402
from benchmarks import browse  # noqa: E402
from benchmarks.make_rows import make  # noqa: E402
from worker.tasks import datasets as tasks  # noqa: E402

LOOK_EVERY_S = 0.2
CEILING_MB, TIMED_ROWS, BAR_S = 2048, 1_000_000, 150.0
BROWSED_ROWS = 5_000_000


class Phase(NamedTuple):
    """What one child cost. `own_mb` and `rss_mb`: the largest process, which is not always the same one."""

    name: str
    wall_s: float
    cpu_s: float
    own_mb: float
    rss_mb: float
    all_own_mb: float
    disk_mb: float
    processes: int
    error: str = ""
    page_p95_ms: float = 0.0


class Watch(threading.Thread):
    """Peak memory of each process below this one, of all together, and of the folder's size on disk."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder, self._is_over = folder, threading.Event()
        self.own: dict[int, float] = {}
        self.rss: dict[int, float] = {}
        self.all_own = self.disk = 0.0

    def run(self) -> None:
        looks = 0
        while not self._is_over.wait(LOOK_EVERY_S):
            self._memory()
            if looks % 10 == 0:
                self.disk = max(self.disk, disk_mb(self._folder))
            looks += 1

    def _memory(self) -> None:
        together = 0.0
        for process in psutil.Process().children(recursive=True):
            held = resident_mb(process.pid)
            if held is None:
                continue
            own, rss = held
            together += own
            self.own[process.pid] = max(own, self.own.get(process.pid, 0.0))
            self.rss[process.pid] = max(rss, self.rss.get(process.pid, 0.0))
        self.all_own = max(self.all_own, together)

    def end(self) -> None:
        self._is_over.set()
        self.join()


def resident_mb(pid: int) -> tuple[float, float] | None:
    """(RssAnon + RssShmem, VmRSS) of a process; None when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "Rss"))}
    if "VmRSS" not in found:
        return None
    return found["RssAnon"] + found["RssShmem"], found["VmRSS"]


def disk_mb(folder: Path) -> float:
    """What the folder takes on disk, files with two names once."""
    seen: dict[int, int] = {}
    for at, _folders, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(os.path.join(at, name))
            except OSError:
                continue
            seen[found.st_ino] = found.st_blocks * 512
    return sum(seen.values()) / 1e6


class Told:
    """Stands where the worker has its lease: takes the progress of a child and shows it now and then."""

    row_id = "scale"

    def __init__(self, name: str) -> None:
        self._name, self._shown = name, time.monotonic()

    def progress(self, done: int, total: int, phase: str = "") -> None:
        if total and time.monotonic() - self._shown > 20:
            self._shown = time.monotonic()
            print(f"  {self._name}: {100 * done / total:.0f} %", file=sys.stderr, flush=True)


def measured(name: str, folder: Path, order: Callable[[], Order]) -> tuple[Phase, Any]:
    """Let the worker's own code run a child on an order; what it cost, and its result."""
    made = order()
    watch, before = Watch(folder), resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    watch.start()
    result, error = None, ""
    try:
        result = tasks._obeyed(Told(name), made, name)  # type: ignore[arg-type]
    except Exception as problem:
        error = str(problem)
    wall = time.monotonic() - began
    watch.end()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    phase = Phase(
        name, wall, cpu, max(watch.own.values(), default=0.0), max(watch.rss.values(), default=0.0), watch.all_own,
        watch.disk, len(watch.own), error,
    )  # fmt: skip
    each = ", ".join(f"{mb:.0f}" for mb in sorted(watch.own.values(), reverse=True))
    print(f"{name}: {wall:.1f} s; own MB of each process: {each} {error}", flush=True)
    return phase, result


def chain(
    source: Path, rows: int, folder: Path, processes: int, only: list[str], looker: browse.Looker | None
) -> list[Phase]:
    """The three children one after the other; ends early when one fails. `only`: steps of the preset to take."""
    kept, working, version = folder / "rows", folder / "set", folder / "version"
    phases = []

    def watched(name: str, order: Callable[[], Order]) -> tuple[Phase, Any]:
        if looker:
            looker.told()
        phase, result = measured(name, folder, order)
        times = looker.told() if looker else []
        if times:
            p50, p95 = (float(np.percentile(times, share)) for share in (50, 95))
            print(f"  {len(times)} pages meanwhile: server p50 {p50:.1f} ms, p95 {p95:.1f} ms", flush=True)
            phase = phase._replace(page_p95_ms=p95)
        return phase, result

    def importing() -> Order:
        limits = tasks._limits(source.stat().st_size)
        return ImportOrder(source=str(source), filename=source.name, out_dir=str(kept), limits=limits)

    phase, report = watched("import", importing)
    phases.append(phase)
    if phase.error:
        return phases
    if report["rows"] != rows:
        return [*phases[:-1], phase._replace(error=f"{report['rows']} rows came of {rows}")]
    file = PlannedFile(
        file_id="made", filename=source.name, sha256="0" * 64, rows=rows, rows_dir=str(kept),
        mapping=Mapping(prompt="{question}", answer="{answer}"),
    )  # fmt: skip
    steps = [step for step in of_preset("standard") if not only or step.name in only]
    plan = Plan(files=[file], steps=steps)
    limits = tasks._limits(tasks._bytes(plan))
    phase, report = watched(
        "prepare",
        lambda: PrepareOrder(plan=plan, out_dir=str(working), processes=processes, limits=limits),
    )  # fmt: skip
    phases.append(phase)
    if phase.error:
        return phases
    gone = {step["name"]: step["removed"] for step in report["steps"] if step["is_applied"] and step["removed"]}
    print(f"  {report['rows_in']:,} rows in, {report['rows']:,} kept; removed: {gone}", flush=True)
    phase, manifest = watched(
        "freeze",
        lambda: FreezeOrder(plan=plan, out_dir=str(version), ready=str(working), processes=processes, limits=limits),
    )  # fmt: skip
    if not phase.error:
        split = manifest["split_report"]
        print(f"  sides {split['placed']}, {split['leaks']} leaks, {split['near_edges']:,} near pairs", flush=True)
    return [*phases, phase]


def show(phases: list[Phase], rows: int) -> None:
    """The table."""
    print(f"\n{'':<10}{'wall s':>9}{'CPU s':>9}{'rows/s':>10}{'own MB':>9}{'RSS MB':>9}{'all own':>9}{'disk MB':>9}")
    for phase in phases:
        rate = f"{rows / phase.wall_s:,.0f}"
        print(
            f"{phase.name:<10}{phase.wall_s:>9.1f}{phase.cpu_s:>9.1f}{rate:>10}{phase.own_mb:>9.0f}{phase.rss_mb:>9.0f}"
            f"{phase.all_own_mb:>9.0f}{phase.disk_mb:>9.0f}  {phase.error}"
        )
    wall, cpu = (sum(values) for values in zip(*((p.wall_s, p.cpu_s) for p in phases), strict=True))
    print(f"{'chain':<10}{wall:>9.1f}{cpu:>9.1f}{rows / wall:>10,.0f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=TIMED_ROWS)
    parser.add_argument("--folder", type=Path, help="where rows are made and kept (default: a temporary folder)")
    parser.add_argument("--source", type=Path, help="rows that make_rows.py made before, as many as --rows")
    parser.add_argument("--only", default="", help="names of steps, comma between (default: the standard preset)")
    parser.add_argument("--browse", action="store_true", help="look through five million rows meanwhile")
    parser.add_argument("--processes", type=int, default=tasks._processes())
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = given.folder or Path(temporary)
        folder = home / f"chain-{given.rows}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        source = given.source or make(home / f"rows-{given.rows}.jsonl", given.rows)
        print(f"{given.rows:,} rows, {source.stat().st_size / 1e6:,.0f} MB, {given.processes} processes", flush=True)
        only = list(filter(None, given.only.split(",")))
        with ExitStack() as beside:
            looker = beside.enter_context(browse.looking(home, BROWSED_ROWS))[0] if given.browse else None
            phases = chain(source, given.rows, folder, given.processes, only, looker)
    show(phases, given.rows)
    missed = [f"{phase.name}: {phase.error}" for phase in phases if phase.error]
    missed += [f"{p.name}: {p.own_mb:.0f} MB in a process" for p in phases if p.own_mb > CEILING_MB]
    missed += [f"{p.name}: {p.page_p95_ms:.0f} ms for a page" for p in phases if p.page_p95_ms > browse.BAR_MS]
    wall = sum(phase.wall_s for phase in phases)
    if given.rows == TIMED_ROWS and wall > BAR_S:
        missed.append(f"the chain took {wall:.0f} s of {BAR_S:.0f}")
    print("missed: " + "; ".join(missed) if missed else "every bar was met")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
