"""`python -m worker.engine train | probe | rates`: the engine as a process of its own.

Supervised: the order is the first line of standard input, commands follow, events leave on standard output, one JSON
object a line; nothing else is printed there. By hand: `train recipe.yaml --data DIR --out DIR [--base DIR]`; `probe`
and `rates` take the same: what that training would take, and which learning rate suits it.
The parent should set OMP_WAIT_POLICY=PASSIVE before the start (see devices.set_threads).
"""

import argparse
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from app.contracts import events as e
from app.contracts.recipe import ModelFiles, TrainOrder

if TYPE_CHECKING:
    from worker.engine.control import Commands
    from worker.engine.launch import Companions

BEGAN_AT = time.monotonic()
EXITS: dict[str, int] = {"paused": e.EXIT_PAUSED, "cancelled": e.EXIT_CANCELLED}


def main() -> int:
    """Parse, train, and return the exit code of the contract."""
    parser = argparse.ArgumentParser(prog="python -m worker.engine")
    verbs = parser.add_subparsers(required=True, dest="verb", metavar="train|probe|rates")
    for verb, words in (
        ("train", "train a model"),
        ("probe", "measure what the training would take"),
        ("rates", "compare learning rates"),
    ):
        command = verbs.add_parser(verb, help=words)
        command.add_argument("recipe", nargs="?", type=Path, help="recipe file; without it, an order on stdin")
        command.add_argument("--data", type=Path, help="folder of a frozen dataset version")
        command.add_argument("--out", type=Path, help="folder of the run")
        command.add_argument("--base", type=Path, help="folder of the base model")
        command.add_argument("--parent", type=int, help="end when this process is no longer the parent (Linux)")
        command.add_argument("--seconds", type=float, default=8.0, help="how long quick steps are repeated")
    options = parser.parse_args()
    die_with_parent(options.parent)
    # Closed before leaving, which may take long: whoever listens knows that nothing more comes.
    with own_stdout() as out:
        if options.recipe:
            if not options.data or not options.out:
                parser.error("a recipe file needs --data and --out")
            order = order_from_file(options.recipe, options.data, options.out, options.base)
        else:
            order = TrainOrder.model_validate_json(sys.stdin.readline())
        seconds = getattr(options, "seconds", 0.0)
        return run(order, out, verb=options.verb, is_supervised=options.recipe is None, seconds=seconds)


def run(order: TrainOrder, out: BinaryIO, *, verb: str, is_supervised: bool, seconds: float) -> int:
    """Do it and write each event as a line to `out`."""
    # Only now: importing torch takes seconds, and a wrong command line should say so at once.
    from worker.engine import light_start, tokenising

    tokenising.begin(order)
    light_start.load(order)
    from worker.engine import launch
    from worker.engine.control import LineCommands

    commands = LineCommands(sys.stdin if is_supervised else open(os.devnull))  # noqa: SIM115
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: commands.put(e.Control(verb="pause")))
    with contextlib.ExitStack() as stack:
        companions = None
        if verb == "train" and launch.is_first_of_several(order):
            companions = stack.enter_context(launch.Companions(order))
        return _follow(order, out, commands, verb, seconds, companions)


def _follow(
    order: TrainOrder, out: BinaryIO, commands: "Commands", verb: str, seconds: float, companions: "Companions | None"
) -> int:
    from worker.engine import ranks
    from worker.engine.errors import DeviceFault, DiskFull, EngineError, is_device_fault, is_disk_full, is_out_of_memory
    from worker.engine.probe import Clock, probe
    from worker.engine.rates import try_rates
    from worker.engine.train import train

    exit_code, step = e.EXIT_DONE, 0
    try:
        told: Iterator[e.EngineEvent] = (
            train(order, commands)
            if verb == "train"
            else try_rates(order, seconds)
            if verb == "rates"
            else probe(order, seconds, Clock(BEGAN_AT, 0.0))
        )
        for event in told:
            tell(out, event)
            step = getattr(event, "step", step)
            if isinstance(event, e.Ended):
                exit_code = EXITS.get(event.reason, e.EXIT_DONE)
    except EngineError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except (RuntimeError, OSError, MemoryError) as error:
        if companions is not None and (lost := companions.loss()) is not None:
            tell(out, e.Ended(reason="failed", step=step, message=lost.sentence))
            return lost.exit_code
        if verb != "train" and is_out_of_memory(error):
            sys.stderr.write(f"{error}\n")
            return e.EXIT_OUT_OF_MEMORY
        if is_disk_full(error):
            return DiskFull.exit_code
        if is_device_fault(error):
            return DeviceFault.exit_code
        raise
    ranks.leave()
    return exit_code


def tell(out: BinaryIO, event: e.EngineEvent) -> None:
    """Write an event as a line."""
    out.write(event.model_dump_json().encode() + b"\n")
    out.flush()


def order_from_file(recipe: Path, data: Path, out: Path, base: Path | None) -> TrainOrder:
    """An order for the command line; the run is named after its folder, so starting again resumes it."""
    from app.contracts import recipe_file

    spec = recipe_file.read(recipe.read_text(encoding="utf-8"))
    out.mkdir(parents=True, exist_ok=True)
    return TrainOrder(
        run_id=out.name,
        attempt_id=f"pid{os.getpid()}",
        fence=0,
        recipe=spec,
        base=ModelFiles(base_dir=str(base)) if base else None,
        data_dir=str(data),
        out_dir=str(out),
    )


def own_stdout() -> BinaryIO:
    """Keep standard output for events alone: whatever else prints there goes to standard error."""
    sys.stdout.flush()
    events = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return events


def die_with_parent(parent: int | None) -> None:
    """On Linux, let the kernel kill this process when its parent dies; leave at once if it already has."""
    if parent is None or not sys.platform.startswith("linux"):
        return
    pr_set_pdeathsig = 1
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(f"the parent {parent} is gone")


if __name__ == "__main__":
    sys.exit(main())
