"""Our engine as `training_throughput.py` measures it: `python -m benchmarks.training.ours '{"order": …}'`.

One process a measurement. The last line of standard output is what it found, as JSON.
"""

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> None:
    """Train until `steps` are done, and tell of each step: seconds, processor seconds, tokens, loss.

    With `beside`, one other process counts during every second stretch of so many steps, and is halted between.
    """
    began = time.monotonic()
    asked = json.loads(sys.argv[1])

    from app.contracts.recipe import TrainOrder
    from worker.engine import light_start, tokenising

    order = TrainOrder.model_validate(asked["order"])
    tokenising.begin(order)  # as `python -m worker.engine` does
    light_start.load(order)
    from benchmarks.training import levers
    from worker.engine.control import NoCommands
    from worker.engine.train import train

    levers.switch_off(asked.get("without", []))
    imported = time.monotonic()
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if asked.get("beside") else None
    if other:
        atexit.register(other.kill)  # however this ends
        other.send_signal(signal.SIGSTOP)
    steps, evaluated, first, wall, cpu = [], [], 0.0, time.monotonic(), time.process_time()
    started = (wall, cpu)
    for event in train(order, NoCommands()):
        now, used = time.monotonic(), time.process_time()
        if event.type == "started":
            started = (now, used)
        if event.type == "step":
            first = first or now
            steps.append({"s": now - wall, "cpu": used - cpu, "tokens": event.tokens, "loss": event.loss})
            if other and len(steps) % asked["beside"] == 0:
                other.send_signal(signal.SIGCONT if len(steps) // asked["beside"] % 2 else signal.SIGSTOP)
        if event.type == "evaluated":
            row = {"step": event.step, "loss": event.loss, "s": now - started[0], "cpu": used - started[1]}
            evaluated.append(row)
        wall, cpu = now, used
        enough = len(steps) >= asked["steps"] or (evaluated and evaluated[-1]["loss"] <= asked.get("until", 0))
        if enough or time.monotonic() - imported > asked.get("seconds", 1e9):
            break
    print(
        json.dumps(
            {
                "steps": steps,
                "evaluated": evaluated,
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "start_s": first - imported,
                "import_s": imported - began,
            }
        )
    )


if __name__ == "__main__":
    main()
