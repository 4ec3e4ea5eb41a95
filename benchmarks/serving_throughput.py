"""How fast answers are made: ours against transformers, PEFT and llama.cpp, on the same model, prompts and machine.

Random weights, prompts of 128 tokens, 128 new ones, greedy; contenders take turns and medians are compared. HTTP on
neither side, but against llama.cpp on both. `--cpu` counts processor seconds of this process instead of the clock, for
a machine that is busy with other work; of the rows over HTTP it counts the server's process too. `--quick` takes the
small model and a third of the tokens, and leaves out llama.cpp; `--http` runs nothing but the rows against it, and
`--first` nothing but the row of the first token. Ends with 1 when a bar is missed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks.serving_models import ADAPTERS, SHAPES, make, make_adapters, shakespeare  # noqa: E402

# Least ratio of ours to the peer, by (row, contender, peer); "first token" and "longest wait" are checked below.
BARS = {
    ("plain", "ours fp32", "one by one"): 3.0,
    ("plain", "ours bf16", "one by one"): 5.0,
    ("plain", "ours int8", "one by one"): 8.0,
    ("plain", "ours fp32", "continuous batching"): 2.0,
    ("adapters", "ours fp32", "PEFT set_adapter"): 6.0,
    ("adapters", "ours fp32", "PEFT mixed batch"): 2.5,
    ("http", "ours int8", "llama.cpp q8_0"): 1.5,
    ("http, one stream", "ours int8", "llama.cpp q8_0"): 0.9,
    ("http, 4 adapters", "ours int8", "llama.cpp q8_0"): 1.5,
}


IS_CPU = "--cpu" in sys.argv
clock = time.process_time if IS_CPU else time.perf_counter


def ours(models: list[Any], prompts: list[list[int]], tokens: int) -> list[Any]:
    """Generations of exactly `tokens` tokens after each prompt, not yet begun; the models take turns."""
    from app.contracts.generation import GenerationRequest, Sampling
    from app.contracts.recipe import ModelFiles
    from worker.engine.generate import Generation

    made = []
    for number, ids in enumerate(prompts):
        loaded = models[number % len(models)]
        request = GenerationRequest(
            model_ref="m", workspace_id="w", files=ModelFiles(base_dir="unused"), prompt=loaded.tokenizer.decode(ids),
            sampling=Sampling(temperature=0, max_tokens=tokens),
        )  # fmt: skip
        made.append(Generation(loaded, request))
    return made


def together(models: list[Any], prompts: list[list[int]], tokens: int) -> int:
    """All at once through our slots; how many tokens came."""
    from worker.engine.slots import Slots

    slots, said = Slots(models[0].root, memory_bytes=0), 0
    for generation in ours(models, prompts, tokens):
        slots.add(generation)
    while slots.answers:
        said += len(slots.step())
    return said


def compare(
    row: str, contenders: dict[str, Callable[[], int]], rounds: int, clock: Callable[[], float] = clock
) -> dict[str, float]:
    """Tokens a second of each, medians of rounds in which they take turns; who cannot run is told and left out."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            if name not in found:
                continue
            began = clock()
            try:
                tokens = work()
            except Exception as error:
                print(f"  {row}: {name} not run: {type(error).__name__}: {str(error)[:160]}")
                del found[name]
                continue
            found[name].append(tokens / (clock() - began))
    medians = {name: statistics.median(values) for name, values in found.items()}
    print(
        f"  {row}: " + "   ".join(f"{name} {value:.1f}" for name, value in medians.items()) + "   tokens/s", flush=True
    )
    return medians


def first_token_s(loaded: Any, prompts: list[list[int]]) -> list[float]:
    """Seconds until each of several answers that begin together has its first token."""
    from worker.engine.slots import Slots

    slots = Slots(loaded, memory_bytes=0)
    answers = ours([loaded], prompts, 64)
    began, at = clock(), dict[Any, float]()
    for answer in answers:
        slots.add(answer)
    while len(at) < len(answers):
        for answer, _ in slots.step():
            at.setdefault(answer, clock() - began)
    return list(at.values())


def second_turn(loaded: Any, ids: list[int], rounds: int) -> float:
    """How many times sooner the first token of a second turn comes when what was read before is kept."""
    from worker.engine.slots import Slots

    def one(slots: Slots, prompt: list[int]) -> float:
        (generation,) = ours([loaded], [prompt], 1)
        began = clock()
        slots.add(generation)
        while slots.answers:
            slots.step()
        return clock() - began

    ratios = []
    for _ in range(rounds):
        slots = Slots(loaded)
        whole = one(slots, ids)
        ratios.append(whole / one(slots, [*ids, *ids[:20]]))
    return statistics.median(ratios)


def waits(loaded: Any, ids: list[int]) -> tuple[float, float]:
    """(median step, 99th percentile) in seconds of 7 answers while a prompt of 2,000 tokens is read beside them."""
    from worker.engine.slots import Slots

    slots = Slots(loaded, memory_bytes=0)
    for answer in ours([loaded], [ids[i * 100 : i * 100 + 128] for i in range(7)], 200):
        slots.add(answer)
    while slots.is_reading:
        slots.step()
    alone, beside = list[float](), list[float]()
    for _ in range(20):
        began = clock()
        slots.step()
        alone.append(clock() - began)
    slots.add(ours([loaded], [ids[1000:3000]], 1)[0])
    while slots.is_reading:
        began = clock()
        slots.step()
        beside.append(clock() - began)
    return statistics.median([*alone, *beside]), statistics.quantiles(beside, n=100)[98]


def from_disk_s(base: Any, folder: Path, adapter: Path, ids: list[int]) -> tuple[float, float]:
    """Seconds from disk to the first token: of an adapter whose base is in memory, and of a whole model."""
    from app.contracts.recipe import ModelFiles, Overlay
    from worker.engine.generate import lay, load

    began = clock()
    one = lay(base, ModelFiles(base_dir=str(folder), overlays=[Overlay(kind="lora", dir=str(adapter))]), "new")
    together([one], [ids], 1)
    middle = clock()
    together([load(ModelFiles(base_dir=str(folder)))], [ids], 1)
    return middle - began, clock() - middle


class Served:
    """Our model server as a process of its own, asked over HTTP on its socket."""

    def __init__(self, folder: Path, home: Path, threads: int, precision: str) -> None:
        import httpx

        self.folder, socket = folder, home / f"{precision}.sock"
        # As llama.cpp is told to, no answer goes on from what another of the same prompt has read.
        self._asked = count()
        command = [sys.executable, "-m", "worker.server", "--socket", str(socket), "--threads", str(threads)]
        self.process = subprocess.Popen([*command, "--precision", precision, "--compiled"], cwd=ROOT)
        transport = httpx.HTTPTransport(uds=str(socket))
        self.client = httpx.Client(transport=transport, base_url="http://model", timeout=600)
        while True:
            with suppress(httpx.TransportError):
                if self.client.get("/health").json()["compiled"] is not None:
                    return
            time.sleep(0.1)

    @property
    def precision(self) -> str:
        """The number format that the loaded model really got."""
        return str(self.client.get("/models").json()["models"][0]["precision"])

    def answer(self, ids: list[int], tokens: int, number: int = 0, adapters: Sequence[Path] = ()) -> int:
        """One answer of at most so many tokens, by one of the adapters where there are any."""
        import orjson

        files: dict[str, Any] = {"base_dir": str(self.folder)}
        if adapters:
            files["overlays"] = [{"kind": "lora", "dir": str(adapters[number % len(adapters)])}]
        order = {
            "model_ref": "m", "workspace_id": f"w{next(self._asked)}", "files": files, "prompt_ids": ids,
            "sampling": {"temperature": 0, "max_tokens": tokens},
        }  # fmt: skip
        with self.client.stream("POST", "/generate", json=order) as response:
            last = list(response.iter_lines())[-1]
        return int(orjson.loads(last)["completion_tokens"])


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--http", action="store_true", help="nothing but the rows against llama.cpp")
    parser.add_argument("--first", action="store_true", help="nothing but the row of the first token")
    parser.add_argument("--accuracy", action="store_true", help="the row of int8 on a trained model, too: two minutes")
    parser.add_argument("--only", choices=SHAPES, help="one model")
    parser.add_argument("--tokens", type=int, help="new tokens of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    import torch
    import transformers

    from worker.engine import compiled

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    compiled.prepare()
    how = "passes compiled" if compiled.is_ready() else "nothing compiled: torch alone"
    tokens = arguments.tokens or (40 if arguments.quick else 128)
    names = [arguments.only] if arguments.only else ["15M"] if arguments.quick else list(SHAPES)
    missed = []
    began = time.process_time()
    for name in names:
        with tempfile.TemporaryDirectory() as home:
            missed += measure(name, Path(home), tokens, arguments)
    cpu_s = time.process_time() - began
    if arguments.accuracy:
        script = [sys.executable, str(ROOT / "benchmarks/serving_accuracy.py"), "--threads", str(arguments.threads)]
        missed += ["int8 on a trained model"] if subprocess.run(script, cwd=ROOT).returncode else []
    else:
        print("int8 on a trained model, at most 1 point lost: --accuracy, or benchmarks/serving_accuracy.py")
    by = "CPU time" if IS_CPU else "the clock"
    conditions = f"{how}, {arguments.threads} threads, {tokens} tokens, by {by}, {cpu_s:.0f} s CPU"
    conditions += f", load {os.getloadavg()[0]:.0f}"
    print(f"serving {'MISSED ' + '; '.join(missed) if missed else 'ok'}; {conditions}")
    return int(bool(missed))


def measure(name: str, home: Path, tokens: int, arguments: argparse.Namespace) -> list[str]:
    """Every row of one model; the bars that were missed."""
    from app.contracts.recipe import ModelFiles, Overlay
    from benchmarks.serving_peers import Transformers
    from worker.engine import precision
    from worker.engine.generate import lay, load

    print(f"{name}:", flush=True)
    folder = make(home / "model", SHAPES[name])
    adapters = make_adapters(folder, home, ADAPTERS + 1)
    files = ModelFiles(base_dir=str(folder))
    # Random weights would not pass the comparison that `load` makes.
    precision.LARGEST_LOSS = precision.LARGEST_DRIFT = float("inf")
    models = {}
    for wanted in get_args(precision.Precision):
        loaded = load(files, precision=wanted)
        if loaded.precision == wanted:
            models[wanted] = loaded
        else:
            print(f"  {wanted} left out: {loaded.note}", flush=True)
    tokenizer = models["fp32"].tokenizer
    ids = tokenizer.encode(shakespeare()[:60_000]).ids
    prompts = [ids[i * 500 : i * 500 + 128] for i in range(8)]
    if arguments.http:
        return judged(name, over_http(folder, home, prompts, adapters[:ADAPTERS], tokens, arguments))
    peer, rounds = Transformers(folder, adapters[:ADAPTERS]), arguments.rounds
    if arguments.first:
        return first_tokens(name, models, peer, prompts, rounds)
    beside = {
        named: [
            lay(base, ModelFiles(base_dir=str(folder), overlays=[Overlay(kind="lora", dir=str(a))]), str(a))
            for a in adapters[:ADAPTERS]
        ]
        for named, base in models.items()
    }
    rows = {}
    rows["plain"] = compare(
        "plain",
        {f"ours {p}": (lambda m=m: together([m], prompts, tokens)) for p, m in models.items()}
        | {
            "one by one": lambda: peer.one_after_another(prompts, tokens),
            "static batch": lambda: peer.static_batch(prompts, tokens),
            "continuous batching": lambda: peer.continuous(prompts, tokens),
        },
        rounds,
    )
    rows["adapters"] = compare(
        "adapters",
        {f"ours {p}": (lambda m=m: together(m, prompts, tokens)) for p, m in beside.items()}
        | {
            "PEFT set_adapter": lambda: peer.set_adapter(prompts, tokens),
            "PEFT mixed batch": lambda: peer.mixed_batch(prompts, tokens),
        },
        rounds,
    )
    missed = first_tokens(name, models, peer, prompts, rounds)
    sooner = second_turn(models["fp32"], ids[:1500], rounds)
    print(f"  second turn after 1,500 tokens: first token {sooner:.1f} times sooner (bar 5)", flush=True)
    missed += [f"{name} second turn {sooner:.1f}"] if sooner < 5 else []
    median, longest = waits(models["fp32"], ids)
    times = f"step {median * 1e3:.0f} ms, p99 {longest / median:.1f} times it (bar 3)"
    print(f"  2,000 tokens read beside 7: {times}", flush=True)
    missed += [f"{name} longest wait {longest / median:.1f}"] if longest > 3 * median else []
    adapter_s, whole_s = from_disk_s(models["fp32"], folder, adapters[-1], prompts[0][:16])
    print(
        f"  from disk to first token: adapter {adapter_s:.2f} s (bar 0.3), whole model {whole_s:.2f} s (bar 2)",
        flush=True,
    )
    missed += [f"{name} adapter {adapter_s:.2f} s"] if adapter_s > 0.3 else []
    missed += [f"{name} model {whole_s:.2f} s"] if whole_s > 2 else []
    if not arguments.quick:
        rows |= over_http(folder, home, prompts, adapters[:ADAPTERS], tokens, arguments)
    return missed + judged(name, rows)


def first_tokens(name: str, models: dict[str, Any], peer: Any, prompts: list[list[int]], rounds: int) -> list[str]:
    """The row of the first token of eight at once; the bars that were missed."""
    mine: dict[str, list[float]] = {named: [] for named in models}
    theirs: list[float] = []
    for _ in range(rounds):
        for named, model in models.items():
            mine[named].append(statistics.median(first_token_s(model, prompts)))
        theirs.append(peer.first_tokens_s(prompts, clock))
    static = statistics.median(theirs)
    shares = {named: statistics.median(found) / static for named, found in mine.items()}
    told = ", ".join(f"{named} {share:.2f}" for named, share in shares.items()) + " (bar 0.5)"
    print(f"  first token of 8 at once, median over the static batch's in fp32 ({static:.2f} s): {told}", flush=True)
    return [f"{name} first token {named} {share:.2f}" for named, share in shares.items() if share > 0.5]


def over_http(
    folder: Path, home: Path, prompts: list[list[int]], adapters: list[Path], tokens: int, arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """The rows against llama.cpp, each with its own HTTP server."""
    import psutil

    from benchmarks.serving_peers import LlamaCpp, at_once

    served = Served(folder, home, arguments.threads, "int8")
    plain: dict[str, Any] = {}
    mixed: dict[str, Any] = {}
    for kind, some, into in (("q8_0", [], plain), ("f16", [], plain), ("q8_0", adapters, mixed)):
        try:
            into[f"llama.cpp {kind}"] = LlamaCpp(folder, home, 8, arguments.threads, 512, kind, some).answer
        except Exception as error:
            print(f"  llama.cpp {kind} not run: {type(error).__name__}: {str(error)[:160]}")
    # Random weights may fail the comparison that the server makes; the row says what they got.
    served.answer(prompts[0], 1)
    mine = f"ours {served.precision}"
    plain = {mine: served.answer, **plain}
    mixed = {mine: partial(served.answer, adapters=adapters), **mixed}
    child = psutil.Process(served.process.pid)

    def both() -> float:
        """Seconds of this process, where llama.cpp and the clients are, and of our server."""
        return clock() + (sum(child.cpu_times()[:2]) if IS_CPU else 0)

    rows = (("http", prompts, plain), ("http, one stream", prompts[:1], plain), ("http, 4 adapters", prompts, mixed))
    try:
        return {
            row: compare(
                row,
                {name: partial(at_once, f, some, tokens) for name, f in contenders.items()},
                arguments.rounds,
                both,
            )
            for row, some, contenders in rows
        }
    finally:
        served.process.terminate()
        served.process.wait(20)


def judged(name: str, rows: dict[str, dict[str, float]]) -> list[str]:
    """The bars that were missed."""
    missed = []
    for (row, contender, other), bar in BARS.items():
        found = rows.get(row, {})
        if contender in found and other in found:
            ratio = found[contender] / found[other]
            print(f"  {row}: {contender} / {other} = {ratio:.2f} (bar {bar:g})", flush=True)
            missed += [f"{name} {row} {contender} / {other} {ratio:.2f}"] if ratio < bar else []
    return missed


if __name__ == "__main__":
    sys.exit(main())
