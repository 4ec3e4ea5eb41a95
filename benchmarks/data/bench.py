"""What the parts of the data benchmark share: the rows, a process measured as a whole, a line of the table."""

import os
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.make_rows import SETS, make, rows

ROOT = Path(__file__).resolve().parents[2]
PEER_PACKAGES = (
    "datasets==4.4.1",
    "pandas==2.3.3",
    "ftfy==6.3.1",
    "beautifulsoup4==4.14.2",
    "lxml==6.0.2",
    "tokenizers==0.23.3",
    "transformers==5.23.0",
)


@dataclass(frozen=True)
class Row:
    """A line of the table. `ratio`: the peer's CPU seconds over ours."""

    part: str
    who: str
    cpu_s: float | None = None
    wall_s: float | None = None
    peak_mb: float | None = None
    ratio: float | None = None
    bar: str = ""
    verdict: str = "measured"
    note: str = ""


@dataclass(frozen=True)
class Cost:
    """Of a whole process with its children: CPU and wall seconds, peak MB of the largest of them; its output."""

    cpu_s: float
    wall_s: float
    peak_mb: float
    output: str


@dataclass(frozen=True)
class Bench:
    """`peers`: a Python that has the peers installed, or None."""

    folder: Path
    is_quick: bool
    set_name: str
    peers: Path | None

    def jsonl(self, name: str = "") -> Path:
        """The rows as JSONL."""
        name = name or self.set_name
        return make(self.folder / f"{name}.jsonl", SETS[name])

    def parquet(self) -> Path:
        """The rows as Parquet with `question` and `answer`, for peers."""
        path = self.folder / f"{self.set_name}.parquet"
        if not path.exists():
            made = list(rows(SETS[self.set_name]))
            columns = {"question": [row[0] for row in made], "answer": [row[1] for row in made]}
            pq.write_table(pa.table(columns), path, compression="zstd", row_group_size=20_000)
        return path

    def peer(self, part: str, who: str, program: str, ours: Cost, bar: float) -> Row:
        """A peer's line: its program run on the Parquet rows; "not run" when it cannot be."""
        if self.peers is None:
            return Row(part, who, bar=f">= {bar:g}", verdict="not run", note="(no environment of peers)")
        cost = measured([str(self.peers), "-c", program, str(self.parquet())])
        if cost is None:
            return Row(part, who, bar=f">= {bar:g}", verdict="not run", note="(could not be installed or failed)")
        ratio = cost.cpu_s / ours.cpu_s
        verdict = "measured" if self.is_quick else "met" if ratio >= bar else "missed"
        return Row(part, who, cost.cpu_s, cost.wall_s, cost.peak_mb, ratio, f">= {bar:g}", verdict)


def measured(command: list[str]) -> Cost | None:
    """Run a command to its end; None when it fails."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system",
    }  # fmt: skip
    with tempfile.TemporaryFile() as out, tempfile.TemporaryDirectory() as cache:
        began = time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, env={**environment, "HF_HOME": cache}
        )
        assert process.stderr is not None
        said = process.stderr.read()
        _pid, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - began
        if process.returncode:
            sys.stderr.write(said.decode("utf-8", "replace")[-1500:])
            return None
        out.seek(0)
        return Cost(used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1024, out.read().decode())


def make_peers(folder: Path) -> Path | None:
    """The Python of an environment with the peers, made when it is not there; None when they cannot be installed."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        done = subprocess.run([str(python), "-m", "pip", "install", "-q", *PEER_PACKAGES], check=False)
        if done.returncode:
            return None
    return python
