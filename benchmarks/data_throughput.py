"""Data at scale against its peers, on the same rows in the same run: CPU seconds, peak memory, bars.

Each part is a module in `benchmarks/data` with `run(bench) -> list[Row]`. Peers run in an environment of their own
(`--peers`, made when it is not there); a peer that cannot be installed says "not run". Exit status 1 when a bar is
missed. `--quick` takes 10,000 rows and checks that everything runs, without bars of speed.
"""

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.data.bench import Bench, Row  # noqa: E402

PARTS = (
    "reading", "cleaning_chain", "exact_copies", "near_copies", "language", "personal", "tokens", "whole_chain",
)  # fmt: skip


def show(rows: list[Row]) -> None:
    print(f"\n{'part':<16}{'who':<26}{'CPU s':>9}{'wall s':>9}{'peak MB':>9}{'ratio':>8}{'bar':>9}  verdict")
    for row in rows:
        numbers = [
            f"{value:.{1 if value >= 1 else 2}f}" if value is not None else "-"
            for value in (row.cpu_s, row.wall_s, row.peak_mb)
        ]
        ratio = f"{row.ratio:.1f}" if row.ratio is not None else "-"
        print(
            f"{row.part:<16}{row.who:<26}{numbers[0]:>9}{numbers[1]:>9}{numbers[2]:>9}{ratio:>8}{row.bar:>9}"
            f"  {row.verdict}{' ' + row.note if row.note else ''}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--set", default="", help="k100 (default), m1, m2 or m5 for the whole chain")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments; made when they are not there")
    parser.add_argument("--without", default="", help="environments of peers to leave out: the slowest is data-juicer")
    parser.add_argument("--folder", type=Path, help="where rows are made and kept (default: a temporary folder)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(
            folder,
            given.quick,
            given.set or ("k10" if given.quick else "k100"),
            given.peers,
            tuple(given.without.split(",")),
        )
        rows: list[Row] = []
        for part in given.parts.split(","):
            found = importlib.import_module(f"benchmarks.data.{part}").run(bench)
            show(found)
            sys.stdout.flush()
            rows += found
    show(rows)
    missed = [row for row in rows if row.verdict == "missed"]
    figures = " ".join(f"{r.part}/{r.who.replace(' ', '_')}={r.ratio:.1f}x" for r in rows if r.ratio is not None)
    print(f"\n{len(rows)} rows, {len(missed)} missed; {figures}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
