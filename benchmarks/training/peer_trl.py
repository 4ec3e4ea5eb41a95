"""TRL's SFTTrainer as `training_throughput.py` measures it, in the peers' own environment: `python peer_trl.py '{…}'`.

It imports nothing of ours. Rows come as token ids with labels, in the order in which ours takes them; the last line of
standard output is what it found, as JSON. `settings`: `default`, or `best`, or fields of SFTConfig.
"""

import json
import os
import resource
import sys
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Found by `--sweep` of training_throughput.py among these and their combinations: packed rows of 1,024 tokens, no
# checkpointing, the base in bf16, chunked loss, small batches that are added up.
BEST = {"packing": True, "max_length": 1024, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "best": {**BEST, "gradient_checkpointing": False, "model_init_kwargs": {"dtype": "bfloat16"}},
    "best, chunked loss": {
        **BEST, "gradient_checkpointing": False, "model_init_kwargs": {"dtype": "bfloat16"}, "loss_type": "chunked_nll",
    },
    "row by row": {
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "gradient_checkpointing": False,
        "model_init_kwargs": {"dtype": "bfloat16"},
    },
    "not padded": {
        "padding_free": True, "max_length": None, "gradient_checkpointing": False,
        "model_init_kwargs": {"dtype": "bfloat16"},
    },
    # For the comparison of losses: the same rows a step as ours, and nothing else changed.
    "same steps": {"gradient_checkpointing": False, "model_init_kwargs": {"dtype": "bfloat16"}},
    "same steps, fp32": {"gradient_checkpointing": False, "bf16": False, "model_init_kwargs": {"dtype": "float32"}},
}  # fmt: skip


def main() -> None:
    """Train so many steps and tell of each: seconds, processor seconds, real tokens, loss."""
    began = time.monotonic()
    asked = json.loads(sys.argv[1])

    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(asked["threads"])
    imported = time.monotonic()
    settings = dict(SETTINGS[asked["settings"]])
    if asked["method"] == "full":  # what learns is held in fp32, as ours holds it
        settings["model_init_kwargs"] = {"dtype": "float32"}
    kwargs = settings.pop("model_init_kwargs", {"dtype": "float32"})
    config = SFTConfig(
        output_dir=asked["out"], max_steps=asked["steps"], learning_rate=asked["learning_rate"],
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, adam_beta2=0.95, max_grad_norm=1.0,
        logging_steps=1, save_strategy="no", report_to="none", use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="sequential", disable_tqdm=True, seed=1,
        **{"per_device_train_batch_size": 8, **settings},
    )  # fmt: skip
    torch.manual_seed(asked["seed"])  # the adapter starts as ours does
    model: Any = AutoModelForCausalLM.from_pretrained(asked["base"], **kwargs)
    if asked["method"] == "lora":
        adapter = LoraConfig(r=16, lora_alpha=asked["alpha"], target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, adapter)
    elif asked["method"] == "last_layers":
        model.requires_grad_(False)
        for module in [*model.model.layers[-asked["layers"] :], model.model.norm]:
            module.float().requires_grad_(True)
    rows = [json.loads(line) for line in open(asked["rows"], encoding="utf-8")]  # noqa: SIM115
    tokenizer = AutoTokenizer.from_pretrained(asked["base"])
    told = Told()
    callback = type("Clock", (TrainerCallback,), {"on_step_end": told.step, "on_log": told.log})()
    trainer = SFTTrainer(
        model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[callback]
    )
    collate, tokens = trainer.data_collator, []

    def counted(examples: list[dict[str, object]]) -> object:
        tokens.append(sum(_inputs(example) for example in examples))
        return collate(examples)

    trainer.data_collator = counted
    told.began()
    trainer.train()
    each = config.gradient_accumulation_steps
    for number, step in enumerate(told.steps):
        step["tokens"] = sum(tokens[number * each : (number + 1) * each])
        step["loss"] = told.losses[number]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = told.first - imported
    print(json.dumps({"steps": told.steps, "peak_bytes": peak, "start_s": start, "import_s": imported - began}))


def _inputs(example: dict[str, object]) -> int:
    """Tokens that are read to foretell the next: one less than each row has, as ours counts."""
    lengths = example.get("seq_lengths") or [len(example["input_ids"])]  # type: ignore[arg-type]
    return sum(lengths) - len(lengths)  # type: ignore[arg-type, call-overload]


class Told:
    """Seconds and processor seconds of each step, and its loss."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.first = 0.0
        self.wall = self.cpu = 0.0

    def began(self) -> None:
        self.wall, self.cpu = time.monotonic(), time.process_time()

    def step(self, *_: object, **__: object) -> None:
        now, used = time.monotonic(), time.process_time()
        self.first = self.first or now
        self.steps.append({"s": now - self.wall, "cpu": used - self.cpu})
        self.wall, self.cpu = now, used

    def log(self, *_: object, logs: dict[str, float] | None = None, **__: object) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


if __name__ == "__main__":
    main()
