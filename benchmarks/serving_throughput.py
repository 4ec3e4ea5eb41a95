"""How fast answers are made: ours against transformers' `generate`, on the same model, prompts and machine.

Random weights in fp32, prompts of 128 tokens, 128 new ones, greedy, no HTTP on either side; ours and the peer take
turns and the medians are compared. `--quick` takes the small model and a third of the tokens. Ends with 1 when a bar is
missed: eight answers together at three times the speed of one after another, and the first token of a second turn
after 1,500 tokens five times sooner than when everything is read again.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Layers, width, middle, heads, key heads: about 15 and 135 million weights with a vocabulary of 8,192.
SHAPES = {"15 M": (8, 320, 960, 5, 5), "135 M": (30, 576, 1536, 9, 3)}
VOCABULARY, CONTEXT = 8192, 2048
BAR_TOGETHER, BAR_SECOND_TURN = 3.0, 5.0


def make(folder: Path, shape: tuple[int, ...]) -> Path:
    """A Llama of random weights with a tokenizer of our own, learned from the shipped Shakespeare."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from app.text.template import CHATML
    from worker.engine import tokenizer as own

    layers, width, middle, heads, key_heads = shape
    torch.manual_seed(0)
    text = (ROOT / "app/datasets/samples/shakespeare.txt").read_text()[:200_000]
    tokenizer = own.train_bpe(iter([text]), 1024)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=middle, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_heads, max_position_embeddings=CONTEXT,
        bos_token_id=None, eos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", chat_template=CHATML)
    fast.save_pretrained(folder)
    return folder


def ours(loaded, prompts: list[list[int]], tokens: int):
    """Generations of exactly `tokens` tokens after each prompt, not yet begun."""
    from app.contracts.generation import GenerationRequest, Sampling
    from app.contracts.recipe import ModelFiles
    from worker.engine.generate import Generation

    made = []
    for ids in prompts:
        request = GenerationRequest(
            model_ref="m", workspace_id="w", files=ModelFiles(base_dir="unused"), prompt=loaded.tokenizer.decode(ids),
            sampling=Sampling(temperature=0, max_tokens=tokens),
        )  # fmt: skip
        made.append(Generation(loaded, request))
    return made


def timed(work: Callable[[], int]) -> float:
    """Tokens a second."""
    began = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - began)


def compare(name: str, loaded, tokens: int, rounds: int) -> tuple[float, float]:
    """(tokens/s of ours with eight together, of generate one after another), medians of interleaved rounds."""
    import torch

    from worker.engine.slots import Slots

    text = (ROOT / "app/datasets/samples/shakespeare.txt").read_text()
    ids = loaded.tokenizer.encode(text[:60_000]).ids
    prompts = [ids[i * 500 : i * 500 + 128] for i in range(8)]

    def together() -> int:
        slots, said = Slots(loaded, memory_bytes=0), 0
        for generation in ours(loaded, prompts, tokens):
            slots.add(generation)
        while slots.answers:
            said += len(slots.step())
        return said

    def one_after_another() -> int:
        said = 0
        for prompt in prompts:
            out = loaded.model.generate(
                torch.tensor([prompt]), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
            )
            said += out.shape[1] - len(prompt)
        return said

    mine, peers = [], []
    for _ in range(rounds):
        mine.append(timed(together))
        peers.append(timed(one_after_another))
    a, b = statistics.median(mine), statistics.median(peers)
    print(f"{name:<6} 8 together {a:8.1f} tokens/s   generate, one after another {b:8.1f}   ratio {a / b:5.2f}")
    return a, b


def second_turn(loaded, rounds: int) -> float:
    """How many times sooner the first token of a second turn comes when what was read before is kept."""
    from worker.engine.slots import Slots

    text = (ROOT / "app/datasets/samples/shakespeare.txt").read_text()
    ids = loaded.tokenizer.encode(text[:60_000]).ids[:1500]

    def first_token_s(slots: Slots, prompt: list[int]) -> float:
        (generation,) = ours(loaded, [prompt], 1)
        began = time.perf_counter()
        slots.add(generation)
        while slots.answers:
            slots.step()
        return time.perf_counter() - began

    ratios = []
    for _ in range(rounds):
        slots = Slots(loaded)
        whole = first_token_s(slots, ids)
        ratios.append(whole / first_token_s(slots, [*ids, *ids[:20]]))
    ratio = statistics.median(ratios)
    print(f"second turn after 1,500 tokens: first token {ratio:.1f} times sooner than the first turn's")
    return ratio


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    import torch

    from app.contracts.recipe import ModelFiles
    from worker.engine.generate import load

    torch.set_num_threads(arguments.threads)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ["15 M"] if arguments.quick else SHAPES:
            loaded = load(ModelFiles(base_dir=str(make(Path(folder, name.replace(" ", "")), SHAPES[name]))))
            a, b = compare(name, loaded, 40 if arguments.quick else 128, 2 if arguments.quick else 3)
            found[f"{name} together"] = (a / b, BAR_TOGETHER)
            if name == "15 M":
                found["second turn"] = (second_turn(loaded, 3), BAR_SECOND_TURN)
    missed = [name for name, (value, bar) in found.items() if value < bar]
    figures = " ".join(f"{name.replace(' ', '_')}={value:.2f} (bar {bar:g})" for name, (value, bar) in found.items())
    print(f"serving {'MISSED' if missed else 'ok'}: {figures}; fp32, {arguments.threads} threads")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
