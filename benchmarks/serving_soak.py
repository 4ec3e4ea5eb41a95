"""The model server under mixed work for `--minutes`: chats of several turns, forms, clients that leave in the middle,
adapters by turns, adapters deleted and made again. Ends with 1 when memory grows, a slot stays taken, or one fails.

The model has random weights (15 million); deleted adapters may be refused, nothing else.
"""

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CLIENTS, ADAPTERS = 10, 12
WARM_SHARE = 0.3  # of the time, in which memory may still grow
GROWTH_BYTES = 48 * 2**20
FORMS: list[dict[str, Any] | None] = [
    None,
    None,
    {"kind": "choice", "choices": ["yes", "no", "perhaps"]},
    {"kind": "regex", "regex": "[a-z]{3,9}"},
]


class Client:
    """One person after another at one server."""

    def __init__(self, server: Any, home: Path, seed: int, ends_at: float, counts: Counter[str]) -> None:
        self.server, self.home, self.ends_at, self.counts = server, home, ends_at, counts
        self.random = random.Random(seed)

    def work(self) -> None:
        """Ask until the time is over."""
        while time.monotonic() < self.ends_at:
            try:
                self._chat()
            except Exception as error:
                self.counts[f"failed: {type(error).__name__}: {str(error)[:80]}"] += 1

    def _chat(self) -> None:
        number = self.random.randrange(ADAPTERS + 1)
        overlays = [{"kind": "lora", "dir": str(self.home / f"adapter{number}")}] if number < ADAPTERS else []
        messages = []
        for _ in range(self.random.randint(1, 3)):
            messages.append({"role": "user", "content": "What say you? " * self.random.randint(1, 30)})
            order = {
                "model_ref": f"m{number}",
                "workspace_id": f"w{self.random.randrange(3)}",
                "files": {"base_dir": str(self.home / "model"), "overlays": overlays},
                "messages": messages,
                "sampling": {
                    "temperature": self.random.choice([0, 1]),
                    "max_tokens": self.random.randint(1, 60),
                    "format": self.random.choice(FORMS),
                    "top_logprobs": self.random.choice([None, 2]),
                },
            }
            said = self._ask(order, leaves=self.random.random() < 0.25)
            if said is None:
                return
            messages.append({"role": "assistant", "content": said})

    def _ask(self, order: dict[str, Any], leaves: bool) -> str | None:
        """The answer; None when this client left, or the adapter was gone."""
        import orjson

        said = ""
        with self.server.client.stream("POST", "/generate", json=order) as response:
            for line in response.iter_lines():
                event = orjson.loads(line)
                said += event.get("text", "")
                if event.get("finish_reason") == "error":
                    error = str(event.get("error"))
                    self.counts["adapter gone" if "files cannot be read" in error else f"failed: {error}"] += 1
                    return None
                if leaves and said:
                    self.counts["left"] += 1
                    return None
        self.counts["answered"] += 1
        return said


def delete_and_make(server: Any, home: Path, spare: Path, ends_at: float, counts: Counter[str]) -> None:
    """Delete an adapter under way and put it back, again and again."""
    chosen = random.Random(0)
    while time.monotonic() < ends_at:
        number = chosen.randrange(ADAPTERS)
        folder = home / f"adapter{number}"
        shutil.rmtree(folder)
        server.client.post("/unload", json={"model_ref": f"m{number}"})
        counts["deleted"] += 1
        time.sleep(0.5)
        shutil.copytree(spare / folder.name, home / "coming")
        (home / "coming").rename(folder)
        time.sleep(1)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", default="fp32")
    arguments = parser.parse_args()
    import psutil

    from benchmarks.serving_models import SHAPES, make, make_adapters
    from benchmarks.serving_throughput import Served

    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        home, spare = Path(folder), Path(folder, "spare")
        spare.mkdir()
        for adapter in make_adapters(make(home / "model", SHAPES["15M"]), spare, ADAPTERS):
            shutil.copytree(adapter, home / adapter.name)
        server = Served(home / "model", home, arguments.threads, arguments.precision)
        began, seen = time.monotonic(), []
        ends_at = began + arguments.minutes * 60
        people = [Client(server, home, seed, ends_at, counts) for seed in range(CLIENTS)]
        threads = [threading.Thread(target=person.work) for person in people]
        threads.append(threading.Thread(target=delete_and_make, args=(server, home, spare, ends_at, counts)))
        for thread in threads:
            thread.start()
        process = psutil.Process(server.process.pid)
        while time.monotonic() < ends_at:
            seen.append((time.monotonic() - began, process.memory_info().rss))
            time.sleep(min(2, max(0.05, ends_at - time.monotonic())))
        for thread in threads:
            thread.join()
        deadline = time.monotonic() + 30
        left = server.client.get("/health").json()
        while (left["active"] or left["waiting"]) and time.monotonic() < deadline:
            time.sleep(0.1)
            left = server.client.get("/health").json()
        cpu_s = sum(process.cpu_times()[:2])
        server.process.terminate()
        server.process.wait(20)
    warm = [rss for at, rss in seen if at > WARM_SHARE * arguments.minutes * 60]
    half = len(warm) // 2
    growth = statistics.median(warm[half:]) - statistics.median(warm[:half])
    faults = [name for name in counts if name.startswith("failed")]
    is_well = not faults and not left["active"] and not left["waiting"] and growth < GROWTH_BYTES
    tenths = [[rss for at, rss in seen if n <= at / (arguments.minutes * 6) < n + 1] for n in range(10)]
    print("memory by tenths of the time, MB: " + " ".join(f"{max(t) / 2**20:.0f}" if t else "-" for t in tenths))
    print(f"{dict(counts)}")
    print(
        f"soak {'ok' if is_well else 'FAILED'}: {arguments.minutes:g} minutes; "
        f"memory when warm {warm[0] / 2**20:.0f} MB, "
        f"{growth / 2**20:+.0f} MB from the first half to the second, largest {max(warm) / 2**20:.0f} MB; "
        f"left at the end: {left}; {cpu_s:.0f} s CPU of the server, load {os.getloadavg()[0]:.0f}"
    )
    return int(not is_well)


if __name__ == "__main__":
    sys.exit(main())
