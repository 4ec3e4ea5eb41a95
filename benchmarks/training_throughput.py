"""How fast the engine trains, beside TRL's SFTTrainer and nanoGPT: same model, same rows, same machine, in turn.

    python benchmarks/training_throughput.py [--quick] [--cpu] [--only NAME …] [--levers [LEVER …]] [--sweep]

Every measurement is a process of its own; ours and the peer's alternate, warm-up steps are left out, medians are told.
Tokens are those of the rows: padding is not counted. TRL and PEFT live in an environment that the script makes
(`--peers`); nanoGPT is where the variable NANOGPT points, its text where SHAKESPEARE does, and STARTER_CORPUS names a
folder with text.jsonl.gz; rows without them are told as not run. `--quick`: few steps, about half an hour on two quiet
cores, ten minutes of it corpus_8m. `--cpu`: one thread and processor seconds in place of the clock, for a machine that
does other work. `--levers`: our own speed with each lever taken out. `--sweep`: TRL in each of its settings. Exit 1
when a bar is missed.
"""

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.training import levers
from benchmarks.training.from_scratch import characters_128
from benchmarks.training.peer_trl import SETTINGS
from benchmarks.training.running import Setting, median, ours, recipe_of, trl
from benchmarks.training.workloads import WORKLOADS, Row, inputs


def main() -> int:
    """Measure and print; 1 when a bar was missed or a workload failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--only", nargs="+", choices=sorted(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--levers", nargs="*", choices=[*levers.LEVERS, *levers.SCRATCH_LEVERS], metavar="LEVER")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--shape", default="15M", choices=["15M", "135M"], help="for --levers and --sweep")
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "gpt-builder-peers")
    parser.add_argument("--steps", type=int, help="measured steps of each process")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        setting = Setting(
            home=Path(home), peers=asked.peers, threads=1 if asked.cpu else min(2, os.cpu_count() or 1),
            unit="cpu" if asked.cpu else "s", warm=1 if asked.quick else 3,
            steps=asked.steps or (3 if asked.quick else 20), rounds=1 if asked.quick else 2, quick=asked.quick,
        )  # fmt: skip
        if asked.levers is not None:
            return told_levers(setting, asked.shape, asked.levers or [*levers.LEVERS, *levers.SCRATCH_LEVERS])
        if asked.sweep:
            return told_sweep(setting, asked.shape)
        return told(setting, asked.only)


def told(setting: Setting, names: list[str]) -> int:
    """Run the workloads, one line a row, and count the missed."""
    rows: list[Row] = []
    failed: list[str] = []
    for name in names:
        try:
            for row in WORKLOADS[name](setting):
                rows.append(row)
                shown = "" if row.bar is None else f"{'≤' if row.most else '≥'} {row.bar:g}"
                mark = "ok" if row.is_good else "MISSED"
                print(f"{row.name:58} {row.value:9.4g}  {shown:>8}  {mark:6}  {row.about}", flush=True)
        except (RuntimeError, OSError, ValueError, LookupError) as error:
            failed.append(name)
            print(f"{name}: FAILED: {error}", flush=True)
    missed = [row.name for row in rows if not row.is_good]
    print(f"{len(rows)} rows, {len(missed)} missed, {len(failed)} workloads failed")
    return int(bool(missed or failed))


def told_levers(setting: Setting, shape: str, names: list[str]) -> int:
    """Our own tokens a second with each lever taken out, beside the whole, in turn."""
    base, version, _ = inputs(setting, shape)
    steps = setting.warm + setting.steps
    tuned = partial(ours, setting, recipe_of("lora", steps, setting.threads), base, version, steps)
    learners = dict.fromkeys(levers.LEVERS, tuned)
    if set(names) & set(levers.SCRATCH_LEVERS):
        learners |= dict.fromkeys(levers.SCRATCH_LEVERS, partial(characters_128, setting, steps))
    for name in names:
        whole, without = [], []
        for _ in range(setting.rounds):
            whole.append(learners[name]().rate(setting))
            without.append(learners[name](without=[name]).rate(setting))
        ratio = median(whole) / median(without)
        print(f"{name:38} {ratio:6.2f} times  ({median(whole):.0f} against {median(without):.0f})", flush=True)
    return 0


def told_sweep(setting: Setting, shape: str) -> int:
    """TRL in each of its settings."""
    base, _, rows = inputs(setting, shape)
    for name in SETTINGS:
        found = trl(setting, "lora", name, base, rows, setting.warm + setting.steps)
        print(
            f"{name:24} {found.rate(setting):7.0f} tokens/{setting.unit}  {found.peak_bytes / 1e9:.2f} GB", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
