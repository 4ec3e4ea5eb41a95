"""How much of a GPU the engine's step uses: LoRA and full on 1 B and 8 B Llama shapes, QLoRA on 8 B, rows of 2,048.

    python benchmarks/gpu_training.py [--shapes 1B 8B] [--methods lora full qlora] [--batch 4] [--peak 989]
    python benchmarks/gpu_training.py --tiny --cpu      tries the script itself, in seconds; its figures mean nothing

Needs only torch, transformers, peft and pydantic beside this repository: weights are random and made on the device,
rows are random tokens, all of them learned, and the step is the engine's own (methods, packing, loss, optimisers).
Told: tokens a second, peak memory, and MFU: 6 N tokens/s over the card's dense bf16 peak for full tuning, 4 N plus 6
times the adapter for LoRA, where N is all weights that multiply (layers and head). What attention multiplies is told
apart and is not in the MFU. TRL with Liger kernels runs beside it where both are installed, and is named where not.
Bars on a GPU: 45 % MFU, 1.3 times TRL, memory not higher. Exit 1 when one is missed.
"""

import argparse
import gc
import importlib.util
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from app.contracts.recipe import LoraSpec, RecipeSpec
from worker.engine import devices, methods, optim, packing
from worker.engine.loss import summed_loss
from worker.engine.packing import pack

LENGTH = 2048
WARM, STEPS = 3, 10
MFU_BAR, TRL_BAR = 0.45, 1.3
# name → width, layers, heads, key heads, inner width, vocabulary, tied
SHAPES = {
    "1B": (2048, 16, 32, 8, 8192, 128_256, True),
    "8B": (4096, 32, 32, 8, 14_336, 128_256, False),
    "tiny": (64, 2, 4, 2, 160, 512, True),
}
# Dense bf16 with fp32 sums, 10^12 a second, from the makers' data sheets.
PEAKS = {"H100": 989, "H200": 989, "A100": 312, "B200": 2250, "L40S": 362, "L4": 121, "RTX 4090": 165}


@dataclass(frozen=True)
class Found:
    """What a method did on a shape."""

    tokens_s: float
    peak_bytes: int
    losses: list[float]


def model_of(shape: str, device: torch.device, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """Random weights made on the device, the same for the same seed."""
    width, layers, heads, key_heads, inner, vocabulary, tied = SHAPES[shape]
    made: Any = LlamaConfig  # its generated signature lacks what every configuration takes
    config = made(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=key_heads,
        intermediate_size=inner, vocab_size=vocabulary, tie_word_embeddings=tied, max_position_embeddings=LENGTH,
        bos_token_id=None, eos_token_id=2, pad_token_id=3, attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)


def rows_of(shape: str, count: int, length: int) -> list[np.ndarray]:
    """Random token ids."""
    return list(np.random.default_rng(0).integers(4, SHAPES[shape][5], (count, length + 1)).astype(np.uint32))


def recipe_of(method: str, batch: int) -> RecipeSpec:
    """LoRA of rank 16 on every linear layer, QLoRA the same in 4 bit, or full."""
    lora = LoraSpec(rank=16, alpha=32, four_bit=method == "qlora")
    kind = "full" if method == "full" else "lora"
    return RecipeSpec(
        method=kind, base_source="folder", base_ref="random", lora=lora, batch_size=batch, micro_batch_size=batch,
        learning_rate=1e-5 if kind == "full" else 2e-4, max_length_tokens=LENGTH + 1,
    )  # fmt: skip


def ours(shape: str, method: str, device: devices.Device, rows: list[np.ndarray], batch: int) -> Found:
    """The engine's step, over and over."""
    recipe = recipe_of(method, batch)
    frozen = torch.float32 if method == "full" else device.compute
    model = model_of(shape, device.device, frozen, packing.NAME)
    methods.choose(recipe, Path()).prepare(model, recipe)
    model.to(device.device).train()  # type: ignore[arg-type]
    named = optim.learning_parameters(model)
    optimizers = optim.build(named, recipe)
    losses, seconds, tokens = [], [], 0
    for step in range(len(rows) // batch):
        began = _now(device)
        part = pack([(ids, np.ones(len(ids), bool)) for ids in rows[step * batch : (step + 1) * batch]], device.device)
        with device.autocast():
            loss, _ = summed_loss(model, part)
        (loss / part.supervised).backward()
        optim.clip(named, recipe.clip_norm)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()) / part.supervised)
        seconds.append(_now(device) - began)
        tokens = part.tokens
    return Found(tokens / statistics.median(seconds[WARM:]), _peak(device), losses)


def trl(shape: str, method: str, device: devices.Device, rows: list[np.ndarray], batch: int, liger: bool) -> Found:
    """TRL's SFTTrainer on the same weights and rows, in bf16, without checkpointing, with Liger kernels on a GPU."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    model = model_of(shape, device.device, torch.float32 if method == "full" else device.compute, "sdpa")
    recipe = recipe_of(method, batch)
    config = SFTConfig(
        output_dir="trl-out", max_steps=len(rows) // batch, per_device_train_batch_size=batch, max_length=LENGTH + 1,
        learning_rate=recipe.learning_rate, lr_scheduler_type="constant", weight_decay=0.0, adam_beta2=0.95,
        bf16=device.compute is torch.bfloat16, gradient_checkpointing=False, logging_steps=1, save_strategy="no",
        report_to="none", disable_tqdm=True, use_liger_kernel=liger, use_cpu=device.device.type == "cpu",
        train_sampling_strategy="sequential",
    )  # fmt: skip
    seconds: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = _now(device)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(_now(device) - self.began)

        def on_log(self, *_: Any, **told: Any) -> None:
            losses.extend([told["logs"]["loss"]] if "loss" in told["logs"] else [])

    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<unk>": 0, "<end>": 2, "<pad>": 3}, unk_token="<unk>")),
        eos_token="<end>", pad_token="<pad>",
    )  # fmt: skip
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    SFTTrainer(
        model, args=config, processing_class=words, peft_config=None if method == "full" else adapter,
        train_dataset=Dataset.from_list([{"input_ids": row.tolist(), "labels": row.tolist()} for row in rows]),
        callbacks=[Clock()],
    ).train()  # fmt: skip
    tokens = batch * (len(rows[0]) - 1)
    return Found(tokens / statistics.median(seconds[WARM:]), _peak(device), losses)


def _now(device: devices.Device) -> float:
    if device.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak(device: devices.Device) -> int:
    if device.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return devices.memory_bytes(device.device)


def operations(shape: str, method: str, length: int) -> tuple[float, float]:
    """Multiplications and additions a token: of the weights, and of causal attention, forward and backward."""
    width, layers, heads, key_heads, inner, vocabulary, _ = SHAPES[shape]
    narrow = width // heads * key_heads
    sides = [(width, width), (width, narrow), (width, narrow), (width, width), *[(width, inner)] * 3]
    weights = layers * sum(a * b for a, b in sides) + width * vocabulary
    attention = 3 * layers * 4 * width * length / 2
    if method == "full":
        return 6.0 * weights, attention
    return 4.0 * weights + 6.0 * layers * sum(16 * (a + b) for a, b in sides), attention


def main() -> int:
    """Print a line a shape and method; 1 when a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["1B", "8B"])
    parser.add_argument("--methods", nargs="+", choices=["lora", "full", "qlora"], default=["lora", "full", "qlora"])
    parser.add_argument("--batch", type=int, default=4, help="rows a step")
    parser.add_argument("--peak", type=float, help="dense bf16 peak of the card, 10^12 a second")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape and short rows, to try the script")
    parser.add_argument("--cpu", action="store_true", help="allow a run without a GPU; bars are not judged")
    asked = parser.parse_args()
    if not torch.cuda.is_available() and not asked.cpu:
        print("not run: there is no GPU here (--tiny --cpu tries the script)")
        return 0
    device = devices.choose(recipe_of("lora", 1))
    card = torch.cuda.get_device_name() if device.device.type == "cuda" else "CPU"
    peak = asked.peak or next((value for name, value in PEAKS.items() if name in card), None)
    lacking = [name for name in ("trl", "datasets", "liger_kernel") if importlib.util.find_spec(name) is None]
    has_trl = not {"trl", "datasets"} & set(lacking)
    print(f"{card}, torch {torch.__version__}, {device.precision}, peak {peak or 'not known: --peak'} TFLOP/s")
    print(f"left out: {', '.join(lacking) or 'nothing'}")
    is_good, length = True, 64 if asked.tiny else LENGTH
    for shape in ["tiny"] if asked.tiny else asked.shapes:
        rows = rows_of(shape, (WARM + (3 if asked.tiny else STEPS)) * asked.batch, length)
        for method in asked.methods:
            if method == "qlora" and (shape not in ("8B", "tiny") or device.device.type != "cuda"):
                print(f"{shape:5} {method:6} not run: 4 bit is for GPUs and measured on 8B")
                continue
            found = _tried(ours, shape, method, device, rows, asked.batch)
            if found is None:
                continue
            weights, attention = operations(shape, method, length)
            mfu = found.tokens_s * weights / (peak * 1e12) if peak else None
            more = found.tokens_s * attention / (peak * 1e12) if peak else None
            shown = f"MFU {mfu:.1%} (attention {more:.1%} more)" if mfu is not None and more is not None else "MFU -"
            print(
                f"{shape:5} {method:6} {found.tokens_s:9.0f} tokens/s  {found.peak_bytes / 1e9:6.2f} GB  {shown}  "
                f"loss {found.losses[0]:.4f} → {found.losses[-1]:.4f}",
                flush=True,
            )
            is_good &= mfu is None or method == "qlora" or mfu >= MFU_BAR
            if has_trl and method != "qlora":
                other = _tried(trl, shape, method, device, rows, asked.batch, "liger_kernel" not in lacking)
                if other:
                    ratio, memory = found.tokens_s / other.tokens_s, found.peak_bytes / other.peak_bytes
                    print(
                        f"{'':12} TRL {other.tokens_s:9.0f} tokens/s  {other.peak_bytes / 1e9:6.2f} GB: {ratio:.2f} "
                        f"times, memory {memory:.2f}; loss {other.losses[0]:.4f} → {other.losses[-1]:.4f}",
                        flush=True,
                    )
                    is_good &= ratio >= TRL_BAR and memory <= 1
    judged = device.device.type == "cuda" and not asked.tiny
    print("bars " + (("met" if is_good else "MISSED") if judged else "not judged"))
    return int(judged and not is_good)


def _tried(measure: Any, shape: str, method: str, device: devices.Device, *rest: Any) -> Found | None:
    """The measurement, or a line that says why there is none."""
    gc.collect()
    if device.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        return measure(shape, method, device, *rest)
    except torch.OutOfMemoryError:
        print(f"{shape:5} {method:6} {measure.__name__}: does not fit into this card's memory", flush=True)
        return None


if __name__ == "__main__":
    sys.exit(main())
