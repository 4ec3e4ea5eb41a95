"""Import, the standard preset in two processes, and freezing: time and peak memory of every process.

Bars: the standard chain on a million rows under 150 s with two free cores and under 1.5 GB a process; every part under
2 GB a process whatever the number of rows.
"""

import sys

from benchmarks.data.bench import Bench, Row, measured
from benchmarks.make_rows import SETS

BAR_S, BAR_MB, CEILING_MB = 150.0, 1536.0, 2048.0


def run(bench: Bench) -> list[Row]:
    """One line for each part of the way."""
    source, rows, work = bench.jsonl(), bench.folder / f"whole-{bench.set_name}", bench.folder / "set"
    found: list[Row] = []
    for verb, arguments in (
        ("import", [str(source), str(rows)]),
        ("standard", [str(rows), str(work)]),
        ("freeze", [str(rows), str(bench.folder / "version"), str(work)]),
    ):
        cost = measured([sys.executable, "-m", "benchmarks.data.ours", verb, *arguments])
        if cost is None:
            return [*found, Row("whole chain", verb, verdict="missed", note="(failed)")]
        is_timed = verb == "standard" and SETS[bench.set_name] == 1_000_000
        most = BAR_MB if verb == "standard" else CEILING_MB
        is_met = cost.peak_mb <= most and (not is_timed or cost.wall_s <= BAR_S)
        bar = f"{BAR_S:.0f} s" if is_timed else f"{most:.0f} MB"
        note = f"({SETS[bench.set_name] / cost.wall_s:,.0f} rows/s)"
        verdict = "met" if is_met else "missed"
        found.append(Row("whole chain", verb, cost.cpu_s, cost.wall_s, cost.peak_mb, None, bar, verdict, note))
    return found
