"""A model from files: base folder, then what was trained on top of it, merged."""

from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from app.contracts.recipe import ModelFiles, Overlay
from worker.engine import variants  # noqa: F401  (registers models of our own kind)
from worker.engine.errors import BadData
from worker.engine.packing import FAMILIES, NAME
from worker.engine.tokenizer_files import with_end_token

disable_progress_bar()  # standard error is a log here


def load_model(files: ModelFiles, dtype: torch.dtype) -> PreTrainedModel:
    """Base weights in `dtype` with every overlay merged in, on the CPU, in evaluation mode.

    Safetensors only and no code from the folder. Raises BadData with a sentence when the folder cannot be used.
    """
    base = Path(files.base_dir)
    try:
        config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
        implementation = NAME if config.model_type in FAMILIES else "sdpa"
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation=implementation,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise BadData(f"The base model in {base.name} cannot be loaded: {error}") from error
    model, report = loaded
    if report["missing_keys"]:
        raise BadData(f"The base model in {base.name} lacks weights: {sorted(report['missing_keys'])[:3]}.")
    for overlay in files.overlays:
        model = apply_overlay(model, overlay)
    return model.eval()


def apply_overlay(model: PreTrainedModel, overlay: Overlay) -> PreTrainedModel:
    """Lay trained weights over the base: a LoRA adapter is merged, changed layers replace theirs."""
    folder = Path(overlay.dir)
    if overlay.kind == "lora":
        from peft import PeftModel

        return PeftModel.from_pretrained(model, folder, local_files_only=True).merge_and_unload()
    tensors = load_file(folder / "layers.safetensors")
    unknown = set(tensors) - set(model.state_dict())
    if unknown:
        raise BadData(f"{folder.name} does not fit this base model: it has {sorted(unknown)[:3]}.")
    model.load_state_dict(tensors, strict=False)
    return model


def end_ids(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> list[int]:
    """Every token that ends an answer: the model's generation settings, then the tokenizer's end token."""
    found = model.generation_config.eos_token_id if model.generation_config else None
    return with_end_token(found, tokenizer, folder)


def stored_dtype(folder: Path) -> torch.dtype:
    """The number format of a model folder's weights, fp32 when its config does not say."""
    name = orjson.loads((folder / "config.json").read_bytes())
    found = name.get("dtype") or name.get("torch_dtype") or "float32"
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(found, torch.float32)
