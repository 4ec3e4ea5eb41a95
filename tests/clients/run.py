"""Real clients against the real API: `make clients` prints which calls of which client worked; 1 when one did not.

Each client lives in an environment of its own, pinned, below var/clients (`--home`). One that cannot be installed is
told as not run. `--only NAME` runs one of them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import select
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from app.core import config, db
from app.core.db import reading
from app.datasets.models import CleaningPlan, DatasetVersion, SourceFile
from app.deployments.snippets import snippets
from app.models import Base
from tests.app.deployments.conftest import Stack, key_of, running
from tests.worker.tiny import make_model
from worker.tasks.datasets import freeze, import_file, prepare

HERE = Path(__file__).resolve().parent
CLIENTS = {
    "openai (Python) 3.54.0": ("with_openai.py", ["openai==3.54.0"]),
    "openai (npm) 7.57.0": ("node", []),
    "LangChain (langchain-openai 1.7.3)": ("with_langchain.py", ["langchain-openai==1.7.3", "openai==3.54.0"]),
    "LiteLLM 1.106.2": ("with_litellm.py", ["litellm==1.106.2"]),
    "lm-evaluation-harness 0.4.13": ("with_lm_eval.py", ["lm_eval[api]==0.4.13", "transformers==5.23.0"]),
    "Open WebUI 0.12.4": ("real_open_webui.py", ["open-webui==0.12.4"]),
    "Open WebUI, its documented calls": ("with_open_webui.py", ["httpx==0.28.1"]),
}
# What a package names as its small set, beside itself, instead of everything that it can use: that is several GB.
SLIM = {"open-webui==0.12.4": "requirements-slim.txt"}


@dataclass
class Outcome:
    """What became of a client: its calls, or why it was not run."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    not_run: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path("var/clients"))
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    chosen = {name: found for name, found in CLIENTS.items() if options.only.lower() in name.lower()}
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="gptb-clients-") as folder, _stack(Path(folder)) as (stack, environment):
        for name, (program, packages) in chosen.items():
            command, problem = _installed(options.home.resolve(), program, packages)
            outcomes[name] = Outcome(not_run=problem) if problem else _run(command, environment)
            print(f"{name}: {outcomes[name].not_run or 'done'}", flush=True)
        assert stack
    print(_table(outcomes))
    return int(any(not one["ok"] for outcome in outcomes.values() for one in outcome.calls))


@contextmanager
def _stack(folder: Path) -> Iterator[tuple[Stack, dict[str, str]]]:
    """The API with a tiny model, work on its files done beside it, and what the programs are told."""
    empty = folder / "empty.db"
    engine = db.make_engine(f"sqlite:///{empty}")
    Base.metadata.create_all(engine)
    engine.dispose()
    base = make_model(folder / "model", context_length=2048)  # Open WebUI asks for titles in 950 tokens
    with running(base, empty) as stack:
        environment = {
            "GPT_BUILDER_URL": f"{stack.url}/v1",
            "GPT_BUILDER_KEY": stack.key,
            "GPT_BUILDER_TRAIN_KEY": key_of(stack, scopes=["read", "train"], requests_per_minute=10_000),
            "GPT_BUILDER_MODEL": stack.model,
            "GPT_BUILDER_TOKENIZER": str(base),
            "GPT_BUILDER_PROGRAM": next(
                one.text for one in snippets(f"{stack.url}/v1", stack.model, "Hi") if one.key == "langchain"
            ),
            "GPT_BUILDER_EXPECTED": json.dumps([_expected(base, " card?"), _expected(base, " soup")]),
        }
        os.environ["GPT_BUILDER_HOME"] = str(stack.home)
        config.get_settings.cache_clear()
        db.forget_engine()
        is_over = threading.Event()
        worker = threading.Thread(target=_work, args=(is_over,))
        worker.start()
        try:
            yield stack, environment
        finally:
            is_over.set()
            worker.join()


def _work(is_over: threading.Event) -> None:
    """What the data worker does: read, prepare and freeze what waits."""
    while not is_over.wait(0.3):
        for model, task in ((SourceFile, import_file), (CleaningPlan, prepare), (DatasetVersion, freeze)):
            with reading() as session:
                waiting = list(session.scalars(select(model.id).where(model.state == "queued")))
            for key in waiting:
                task(key)


@torch.inference_mode()
def _expected(folder: Path, continuation: str) -> dict[str, Any]:
    """The log-likelihood of a continuation as transformers gives it."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    context = "Where is my"
    before = len(tokenizer.encode(context, add_special_tokens=False))
    ids = tokenizer.encode(context + continuation, add_special_tokens=False)
    told = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    places = range(before - 1, len(ids) - 1)
    total = sum(float(told[at, ids[at + 1]]) for at in places)
    is_greedy = all(int(told[at].argmax()) == ids[at + 1] for at in places)
    return {"context": context, "continuation": continuation, "sum": total, "is_greedy": is_greedy}


def _installed(home: Path, program: str, packages: list[str]) -> tuple[list[str], str]:
    """The command that runs a client's program, or why it cannot be run."""
    if program == "node":
        folder = home / "node"
        if shutil.which("npm") is None or shutil.which("node") is None:
            return [], "node and npm are not installed here"
        shutil.copytree(HERE / "node", folder, dirs_exist_ok=True)
        if not (folder / "node_modules" / "openai").exists():
            done = subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder)], check=False)
            if done.returncode:
                return [], "npm could not install it"
        return ["node", str(folder / "calls.mjs")], ""
    folder = home / Path(program).stem
    python, stamp = folder / "bin" / "python", folder / "installed"
    if not stamp.exists() or stamp.read_text() != "\n".join(packages):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        if not all(_pip(python, order) for order in _orders(folder, packages)):
            return [], "pip could not install it"
        stamp.write_text("\n".join(packages))
    return [str(python), str(HERE / program)], ""


def _orders(folder: Path, packages: list[str]) -> Iterator[list[str]]:
    """What pip is told, one after another."""
    for package in packages:
        if package in SLIM:
            yield ["--no-deps", package]
            yield ["-r", str(next(folder.glob(f"lib/*/site-packages/{SLIM[package]}")))]
    if whole := [package for package in packages if package not in SLIM]:
        yield whole


def _pip(python: Path, order: list[str]) -> bool:
    return subprocess.run([str(python), "-m", "pip", "install", "-q", *order], check=False).returncode == 0


def _run(command: list[str], environment: dict[str, str]) -> Outcome:
    outside = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/tmp"), "LITELLM_LOCAL_MODEL_COST_MAP": "1"}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(
        command, env=outside | offline | environment, capture_output=True, text=True, timeout=1800, check=False
    )
    calls = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("SAID ")]
    if done.returncode or not calls:
        sys.stderr.write(done.stderr[-4000:])
        calls.append({"call": "the program itself", "ok": False, "note": f"ended with {done.returncode}"})
    elif not all(one["ok"] for one in calls):
        sys.stderr.write(done.stderr[-8000:])
    return Outcome(calls)


def _table(outcomes: dict[str, Outcome]) -> str:
    lines = ["", "| client | call | |", "|---|---|---|"]
    for name, outcome in outcomes.items():
        if outcome.not_run:
            lines.append(f"| {name} | – | not run: {outcome.not_run} |")
        lines += [f"| {name} | {one['call']} | {'works' if one['ok'] else one['note']} |" for one in outcome.calls]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
