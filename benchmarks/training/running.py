"""One measurement is one process: ours, TRL in its own environment, or nanoGPT; the last line is what it found."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.contracts.recipe import LoraSpec, ModelFiles, RecipeSpec, TrainOrder

ROOT = Path(__file__).parent.parent.parent
PEERS = ("transformers==5.23.0", "peft==0.21.2", "trl==1.16.0", "accelerate==1.15.0")
TORCH = "torch==2.13.0"
SEED = 1


@dataclass(frozen=True)
class Setting:
    """How everything is measured: on which threads, by the clock or by processor seconds, how long, where."""

    home: Path
    peers: Path
    threads: int
    unit: str  # "s" or "cpu"
    warm: int
    steps: int
    rounds: int
    quick: bool
    began: float = field(default_factory=time.monotonic)

    def environment(self) -> dict[str, str]:
        """The same waiting and threads for all."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
        more = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        return {**kept, **more, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Row:
    """One line: what was found against what was asked. `bar` None: told, not judged; `most`: the bar is a ceiling."""

    name: str
    value: float
    bar: float | None
    about: str = ""
    most: bool = False

    @property
    def is_good(self) -> bool:
        return self.bar is None or (self.value <= self.bar if self.most else self.value >= self.bar)


@dataclass
class Found:
    """What a process told: its steps, evaluations, peak memory and times."""

    steps: list[dict[str, float]]
    peak_bytes: int
    start_s: float
    import_s: float = 0.0
    evaluated: list[dict[str, float]] = field(default_factory=list)

    def rate(self, setting: Setting, first: int | None = None, last: int | None = None) -> float:
        """Real tokens a second, warm-up left out."""
        some = self.steps[setting.warm if first is None else first : last]
        return sum(step["tokens"] for step in some) / sum(step[setting.unit] for step in some)

    @property
    def losses(self) -> list[float]:
        return [step["loss"] for step in self.steps]


def peers_python(setting: Setting) -> Path:
    """The interpreter of the peers' environment, made on first use."""
    python = setting.peers / "bin" / "python"
    if not (setting.peers / "made").is_file():
        print(f"making the peers' environment in {setting.peers}", flush=True)
        venv.create(setting.peers, with_pip=True)
        for packages in ((TORCH,), PEERS):  # torch first, so that nothing else pulls another build
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        (setting.peers / "made").touch()
    return python


def recipe_of(method: str, steps: int, threads: int, **more: Any) -> RecipeSpec:
    """A run that only steps: no looks, no checkpoints before its end."""
    plain: dict[str, Any] = {
        "base_source": "folder", "base_ref": "base", "lora": LoraSpec(rank=16, alpha=32), "last_layers": 4,
        "epochs": 1000, "max_steps": steps + 1, "batch_size": 8, "micro_batch_size": 8, "max_length_tokens": 1024,
        "learning_rate": 2e-4, "schedule": "constant", "warmup_steps": 0, "evaluate_every_steps": 1_000_000,
        "checkpoint_every_s": 86_400, "validation_rows": 0, "early_stopping": False, "seed": SEED,
        "threads": threads,
    }  # fmt: skip
    return RecipeSpec(method=method, **{**plain, **more})


def ours(setting: Setting, recipe: RecipeSpec, base: Path | None, version: Path, steps: int, **more: Any) -> Found:
    """Our engine in a process of its own. `more`: see `benchmarks/training/ours.py`."""
    out = Path(tempfile.mkdtemp(dir=setting.home))
    try:
        if tokenizer := more.pop("tokenizer", None):
            shutil.copytree(tokenizer, out / "tokenizer")
        order = TrainOrder(
            run_id="bench", attempt_id="a", fence=0, recipe=recipe, resume=False,
            base=ModelFiles(base_dir=str(base)) if base else None, data_dir=str(version), out_dir=str(out),
            cache_dir=more.pop("cache", None),
        )  # fmt: skip
        asked = {"order": order.model_dump(mode="json"), "steps": steps, **more}
        return told([sys.executable, "-m", "benchmarks.training.ours", json.dumps(asked)], setting)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def first_step(setting: Setting, recipe: RecipeSpec, base: Path, version: Path) -> tuple[float, float]:
    """Seconds from the start of a trainer, as the supervisor starts it, to its first word (its libraries are loaded)
    and to the end of its first step."""
    out = Path(tempfile.mkdtemp(dir=setting.home))
    files = ModelFiles(base_dir=str(base))
    order = TrainOrder(
        run_id="bench", attempt_id="a", fence=0, recipe=recipe, base=files, data_dir=str(version), out_dir=str(out)
    )
    began, said = time.monotonic(), 0.0
    command = [sys.executable, "-m", "worker.engine", "train"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(command, env=setting.environment(), cwd=ROOT, **pipes)
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(order.model_dump_json().encode() + b"\n")
        child.stdin.flush()
        for line in child.stdout:
            said = said or time.monotonic() - began
            if json.loads(line)["type"] == "step":
                return said, time.monotonic() - began
    finally:
        child.kill()
        child.wait()
        shutil.rmtree(out, ignore_errors=True)
    raise RuntimeError(f"the trainer ended with {child.returncode} before its first step")


def trl(setting: Setting, method: str, settings: str, base: Path, rows: Path, steps: int) -> Found:
    """TRL with the same model and rows."""
    asked = {
        "method": method, "settings": settings, "base": str(base), "rows": str(rows), "steps": steps, "alpha": 32,
        "threads": setting.threads, "learning_rate": 2e-4, "seed": SEED, "layers": 4, "out": str(setting.home / "trl"),
    }  # fmt: skip
    script = Path(__file__).parent / "peer_trl.py"
    return told([str(peers_python(setting)), str(script), json.dumps(asked)], setting)


def told(command: list[str], setting: Setting) -> Found:
    """Run it and read its last line."""
    done = subprocess.run(command, env=setting.environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[1:3]} ended with {done.returncode}: {done.stderr[-1500:]}")
    return Found(**json.loads(done.stdout.strip().splitlines()[-1]))


def median(values: list[float]) -> float:
    return statistics.median(values)


def nanogpt(
    setting: Setting, folder: Path, data: Path, arguments: dict[str, Any], *, told_as: str
) -> list[dict[str, float]]:
    """nanoGPT's own train.py on the data in `data` (train.bin, val.bin, meta.pkl); its evaluations, with the time since
    the end of its first step, in which it may compile. Every half a minute it says where it is, as `told_as`."""
    import psutil

    place = Path(tempfile.mkdtemp(dir=setting.home))
    for name in ("train.py", "model.py", "configurator.py"):
        shutil.copyfile(folder / name, place / name)
    (place / "config").mkdir()
    shutil.copyfile(folder / "config" / "train_shakespeare_char.py", place / "config" / "train_shakespeare_char.py")
    shutil.copytree(data, place / "data" / "bench")
    given = {"dataset": "bench", "device": "cpu", "always_save_checkpoint": False, "log_interval": 1, **arguments}
    command = [sys.executable, "-u", "train.py", "config/train_shakespeare_char.py"]
    command += [f"--{name}={value}" for name, value in given.items()]
    found: list[dict[str, float]] = []
    child = subprocess.Popen(
        command, cwd=place, env=setting.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    process, began, last, told_at = psutil.Process(child.pid), None, "", time.monotonic()
    assert child.stdout is not None
    try:
        for line in child.stdout:
            last = line
            used = process.cpu_times()
            now = time.monotonic(), used.user + used.system
            if line.startswith("iter ") and began is None:
                began = now
            if line.startswith("step "):
                number, loss = line.split(":")[0].split()[1], line.rsplit(" ", 1)[1]
                since = (now[0] - began[0], now[1] - began[1]) if began else (0.0, 0.0)
                found.append({"step": float(number), "loss": float(loss), "s": since[0], "cpu": since[1]})
            if time.monotonic() - told_at > 30:
                told_at = time.monotonic()
                print(f"  {told_at - setting.began:6.0f} s  {told_as}: {line.split(', mfu')[0].strip()}", flush=True)
    finally:
        child.kill()
        child.wait()
        shutil.rmtree(place, ignore_errors=True)
    if len(found) < 2:
        raise RuntimeError(f"nanoGPT told nothing: {last}")
    return found
