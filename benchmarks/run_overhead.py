"""What the product takes beside the trainer while a run trains and someone watches it live.

    python benchmarks/run_overhead.py [--steps N]

Starts the real stack, trains a GPT of about 6 million weights from scratch through the queue, has its page
open in a real browser, which is not counted. Counted are the processor seconds of every other process of the product
(web, streams, front, worker, housekeeper, Redis) from the first recorded step to the last. The trainer uses every core.
Bar: 2 % of the processor time of the steps, with what the idle stack takes, which is told beside it.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BAR = 0.02
TRAINER = "trainer"


def seconds_of(root: psutil.Process) -> Counter[str]:
    """Processor seconds so far of each of the product's processes, by what it does; the trainer is `TRAINER`."""
    seconds: Counter[str] = Counter()
    for process in [root, *root.children(recursive=True)]:
        try:
            used, line = sum(process.cpu_times()[:2]), process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        seconds[TRAINER if "worker.engine" in line else " ".join(line[1:6])[-60:] or process.name()] += used
    return seconds


def beside(seconds: Counter[str]) -> float:
    """Processor seconds of all but the trainer."""
    return seconds.total() - seconds[TRAINER]


def begin_run(steps: int) -> str:
    """Queue the run in the owner's workspace; its id."""
    from sqlalchemy import select

    import app.models  # noqa: F401
    from app.accounts.access import Actor
    from app.accounts.models import User, Workspace
    from app.contracts.recipe import ScratchSpec
    from app.core.db import transaction
    from app.projects.models import Project
    from app.runs import service
    from tests.factories import a_recipe, a_version

    spec = ScratchSpec(layers=6, heads=4, width=288, context_length=128, tokenizer="characters")
    recipe = a_recipe(
        scratch=spec, max_steps=steps, threads=None, batch_size=32, micro_batch_size=32, max_length_tokens=128,
        evaluate_every_steps=steps, checkpoint_every_steps=steps,
    )  # fmt: skip
    with transaction() as session:
        workspace_id, user = session.scalars(select(Workspace.id)).one(), session.scalars(select(User)).one()
        project = Project(workspace_id=workspace_id, name="Watched", created_by=user.id)
        session.add(project)
        session.flush()
        version = a_version(session, project.id, rows=2_000)
        run = service.start(
            session,
            Actor(user.id, user.email, user.name, {workspace_id: "owner"}),
            project_id=project.id,
            version_id=version.id,
            recipe=recipe,
            client_request_id="overhead",
        )
        return run.id


def step_of(run_id: str) -> tuple[int, str]:
    """The newest recorded step of a run, and its state."""
    from app.core.db import reading
    from app.runs.models import Run

    with reading() as session:
        run = session.get_one(Run, run_id)
        return run.step, run.state


def main() -> int:
    """Run it, print what was found, 1 when the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    asked = parser.parse_args()

    from benchmarks.first_model import browser_path
    from benchmarks.pages import sign_up
    from tests.conftest import start_stack

    folder = Path(tempfile.mkdtemp(prefix="gptb-overhead-"))
    child, server = start_stack(folder / "home")
    try:
        os.environ["GPT_BUILDER_HOME"] = str(folder / "home")
        root = psutil.Process(child.pid)
        with httpx.Client(base_url=server.url, timeout=30) as client:
            sign_up(client, server.setup_token)
            time.sleep(10)
            idle_from, idle_at = seconds_of(root), time.monotonic()
            time.sleep(20)
            idle_seconds, idle_took = seconds_of(root) - idle_from, time.monotonic() - idle_at
            run_id = begin_run(asked.steps)
            while step_of(run_id)[0] < 1:
                time.sleep(0.2)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
                context = browser.new_context(base_url=server.url)
                cookies: list[Any] = [
                    {"name": name, "value": value, "url": server.url} for name, value in client.cookies.items()
                ]
                context.add_cookies(cookies)
                page = context.new_page()
                page.goto(f"/runs/{run_id}")
                page.locator("live-chart").first.wait_for()
                at_first, (first, _), began = seconds_of(root), step_of(run_id), time.monotonic()
                while (now := step_of(run_id))[1] == "running" and now[0] < asked.steps:
                    at_last, last, took = seconds_of(root), now[0], time.monotonic() - began
                    page.wait_for_timeout(500)
                browser.close()
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
    seconds = at_last - at_first
    idle, share = beside(idle_seconds) / idle_took, beside(seconds) / seconds[TRAINER]
    for name, used in seconds.most_common():
        print(f"{used / took:8.2%} of a core, idle {idle_seconds[name] / idle_took:6.2%}  {name}")
    print(f"{last - first} steps in {took:.0f} s; idle before the run {idle:.2%} of a core")
    print(f"overhead {'met' if share <= BAR else 'MISSED'}: {share:.4f} of the steps' time (bar {BAR})")
    return int(share > BAR)


if __name__ == "__main__":
    sys.exit(main())
