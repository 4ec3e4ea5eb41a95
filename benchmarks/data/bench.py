"""What the parts of the data benchmark share: the rows, a process measured as a whole, a line of the table."""

import os
import subprocess
import sys
import tempfile
import threading
import time
import venv
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from benchmarks.make_rows import SETS, make

ROOT = Path(__file__).resolve().parents[2]
# Environments of the peers. text-dedup and data-juicer ask for so much of their own that each has one to itself.
PEERS = {
    "main": (
        "datasets==5.2.0", "pandas==3.1.1", "ftfy==6.3.1", "beautifulsoup4==4.15.0", "lxml==6.1.3", "datasketch==2.0.0",
        "py3langid==0.4.0", "lingua-language-detector==2.1.1", "presidio-analyzer==2.2.366", "tokenizers==0.23.3",
        "transformers==5.23.0",
    ),
    "text-dedup": ("text-dedup==0.4.0",),
    "data-juicer": ("py-data-juicer==1.6.1", "aiohttp", "ftfy==6.3.1", "selectolax"),
}  # fmt: skip
LIMIT_S = 300
GROUP_ROWS = 20_000


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
    """`environments`: the folder of the peers' environments, or None; those `left_out` are not run."""

    folder: Path
    is_quick: bool
    set_name: str
    environments: Path | None
    left_out: tuple[str, ...] = ()

    @property
    def peers(self) -> Path | None:
        """The Python of the main environment, or None."""
        python = self.python()[0]
        return Path(python) if python else None

    @property
    def few(self) -> str:
        """The set for peers that would take many minutes with the whole one."""
        return self.set_name if self.is_quick else "k20"

    def python(self, name: str = "main") -> tuple[str, str]:
        """The Python of an environment of peers, made when it is not there; or "" and why there is none."""
        if name in self.left_out:
            return "", "left out of this run"
        return made(self.environments, name) if self.environments else ("", "no environment of peers")

    def jsonl(self, name: str = "") -> Path:
        """The rows as JSONL."""
        name = name or self.set_name
        return make(self.folder / f"{name}.jsonl", SETS[name])

    def parquet(self, name: str = "") -> Path:
        """The rows as Parquet with `question` and `answer`, for peers."""
        path = self.folder / f"{name or self.set_name}.parquet"
        if not path.exists():
            stream = pa_json.open_json(self.jsonl(name))
            with pq.ParquetWriter(path, stream.schema, compression="zstd") as writer:
                held: list[pa.RecordBatch] = []
                for batch in stream:
                    held.append(batch)
                    if sum(b.num_rows for b in held) >= GROUP_ROWS:
                        writer.write_table(pa.Table.from_batches(held))
                        held = []
                if held:
                    writer.write_table(pa.Table.from_batches(held))
        return path

    def peer(
        self, part: str, who: str, program: str, ours: Cost, bar: float, *, environment: str = "main",
        paths: tuple[Path, ...] = (),
    ) -> Row:  # fmt: skip
        """A peer's line: its program run on `paths` (the Parquet rows); "not run" when it cannot be."""
        python, why = self.python(environment)
        if not python:
            return self.not_run(part, who, bar, why)
        cost = measured([python, "-c", program, *map(str, paths or (self.parquet(),))])
        if cost is None:
            return self.not_run(part, who, bar, "failed")
        ratio = cost.cpu_s / ours.cpu_s
        note = "" if not cost.output.strip() or len(cost.output) > 40 else f"({cost.output.strip()})"
        return Row(
            part, who, cost.cpu_s, cost.wall_s, cost.peak_mb, ratio, f">= {bar:g}", self.verdict(ratio >= bar), note
        )

    def not_run(self, part: str, who: str, bar: float, why: str) -> Row:
        """A line of a peer that could not be run, with its reason."""
        return Row(part, who, bar=f">= {bar:g}", verdict="not run", note=f"({why})")

    def verdict(self, is_met: bool) -> str:
        """The word for a bar of speed: there is none on a quick run."""
        return "measured" if self.is_quick else "met" if is_met else "missed"


def measured(command: list[str], limit_s: float = 1200) -> Cost | None:
    """Run a command to its end; None when it fails or takes longer than `limit_s`."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system", "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    with tempfile.TemporaryFile() as out, tempfile.TemporaryDirectory() as cache:
        began = time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, env={**environment, "HF_HOME": cache}
        )
        assert process.stderr is not None
        limit = threading.Timer(limit_s, process.kill)
        limit.start()
        said = process.stderr.read()
        _pid, status, used = os.wait4(process.pid, 0)
        limit.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - began
        if process.returncode:
            sys.stderr.write(said.decode("utf-8", "replace")[-1500:])
            return None
        out.seek(0)
        return Cost(used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1024, out.read().decode())


def made(folder: Path, name: str) -> tuple[str, str]:
    """The Python of an environment, installed when it is not; or "" and the reason, kept until its file is deleted."""
    place = (folder / name).resolve()
    python, done, refused = place / "bin" / "python", place / "installed.txt", place / "not-installed.txt"
    if refused.exists():
        return "", refused.read_text()
    if done.exists():
        return str(python), ""
    venv.create(place, with_pip=True)
    try:
        command = [str(python), "-m", "pip", "install", "-q", *PEERS[name]]
        found = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        why = (found.stderr.strip().splitlines() or [f"status {found.returncode}"])[-1][:120]
    except subprocess.TimeoutExpired:
        found, why = None, f"not installed within {LIMIT_S} s"
    if found is None or found.returncode:
        refused.write_text(why)
        return "", why
    done.write_text("\n".join(PEERS[name]))
    return str(python), ""
