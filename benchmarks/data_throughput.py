"""Data at scale against its peers, on the same rows in the same run: CPU seconds, peak memory, bars.

Each part is a module in `benchmarks/data` with `run(bench) -> list[Row]`. Peers run in an environment of their own
(`--peers`, made when it is not there); a peer that cannot be installed says "not run". Exit status 1 when a bar is
missed. `--quick` takes 10,000 rows and checks that everything runs, without bars of speed.
"""

import argparse
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.data.bench import Bench, Row, make_peers  # noqa: E402

# Modules with `run`; those without are scripts of their own with their own bars, and run as they are.
PARTS = ("cleaning_chain", "exact_copies", "tokens", "whole_chain")
SCRIPTS = ("near_copies", "reading", "personal_measure")


def script(name: str) -> list[Row]:
    """A script of its own: its table is printed as it comes, its exit status is the verdict."""
    done = subprocess.run([sys.executable, "-m", f"benchmarks.data.{name}"], cwd=ROOT, check=False)
    return [Row(name, "see its own table", verdict="missed" if done.returncode else "met")]


def show(rows: list[Row]) -> None:
    print(f"\n{'part':<16}{'who':<26}{'CPU s':>9}{'wall s':>9}{'peak MB':>9}{'ratio':>8}{'bar':>9}  verdict")
    for row in rows:
        numbers = [f"{value:.1f}" if value is not None else "-" for value in (row.cpu_s, row.wall_s, row.peak_mb)]
        ratio = f"{row.ratio:.1f}" if row.ratio is not None else "-"
        print(
            f"{row.part:<16}{row.who:<26}{numbers[0]:>9}{numbers[1]:>9}{numbers[2]:>9}{ratio:>8}{row.bar:>9}"
            f"  {row.verdict}{' ' + row.note if row.note else ''}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--set", default="", help="k100 (default), m1, m2 or m5 for the whole chain")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"also {', '.join(SCRIPTS)}")
    parser.add_argument("--peers", type=Path, help="environment of the peers; made when it is not there")
    parser.add_argument("--folder", type=Path, help="where rows are made and kept (default: a temporary folder)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        peers = make_peers(given.peers) if given.peers else None
        bench = Bench(folder, given.quick, given.set or ("k10" if given.quick else "k100"), peers)
        rows: list[Row] = []
        for part in given.parts.split(","):
            module = None if part in SCRIPTS else importlib.import_module(f"benchmarks.data.{part}")
            rows += module.run(bench) if module else script(part)
    show(rows)
    missed = [row for row in rows if row.verdict == "missed"]
    figures = " ".join(f"{r.part}/{r.who.replace(' ', '_')}={r.ratio:.1f}x" for r in rows if r.ratio is not None)
    print(f"\n{len(rows)} rows, {len(missed)} missed; {figures}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
