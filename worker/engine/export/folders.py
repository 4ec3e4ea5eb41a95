"""Folders that transformers and PEFT load: the adapter alone, or the whole model with everything merged."""

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from app.contracts.export import Check, ExportOrder, ExportReport
from worker.engine import loading
from worker.engine.errors import BadData
from worker.engine.export.source import Source, answers, conversation, plain
from worker.engine.tokenizer_files import TOKENIZER_FILES

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def write_adapter(order: ExportOrder, source: Source, folder: Path) -> ExportReport:
    """The adapter as PEFT keeps it, with the tokenizer; loaded again onto its base. Raises BadData where it differs."""
    overlays = order.files.overlays
    if len(overlays) != 1 or overlays[0].kind != "lora":
        raise BadData("This model is no single adapter. Export it as a whole folder instead.")
    for name in ADAPTER_FILES:
        shutil.copyfile(Path(overlays[0].dir) / name, folder / name)
    path = folder / "adapter_config.json"
    config = orjson.loads(path.read_bytes()) | {"base_model_name_or_path": order.base_name or None}
    path.write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
    copy_tokenizer(source, folder)
    parameters = _parameters(folder / "adapter_model.safetensors")
    del source.model
    from peft import PeftModel

    base = plain(_load(Path(order.files.base_dir)))
    adapted: Any = PeftModel.from_pretrained(base, folder, local_files_only=True).eval()
    tool = f"PEFT {version('peft')}"
    check = compare(tool, source.answers, answers(adapted, source))
    notes = []
    if not check.is_exact:
        # Beside its base an adapter adds up in another order; merged it must be the served model itself.
        merged = compare(tool, source.answers, answers(adapted.merge_and_unload(), source))
        if not merged.is_exact:
            raise BadData(f"The exported adapter answers differently from your model: {_told(merged)}.")
        notes.append(f"Merged into its base it answers the same; beside it {_told(check)}.")
    _compare_prompts(order, source, folder)
    return ExportReport(number_format="float32", checks=[check], notes=notes, parameters=parameters)


def write_merged(order: ExportOrder, source: Source, folder: Path) -> ExportReport:
    """The whole model as `from_pretrained` loads it. Merged weights keep the base's number format where the answers
    stay the same in it, else they are written in fp32. Raises BadData where the answers differ."""
    parameters = sum(p.numel() for p in source.model.parameters())
    dtype = loading.stored_dtype(Path(order.files.base_dir))
    notes = []
    for kind in dict.fromkeys((dtype, torch.float32)):
        write_weights(source, folder, kind)
        check = compare(
            f"transformers {version('transformers')}", source.answers, answers(plain(_load(folder)), source)
        )
        if check.is_exact:
            break
        notes = [f"In {str(kind).removeprefix('torch.')} {_told(check)}, so the weights are in float32."]
        source.model = plain(loading.load_model(order.files, torch.float32))
    else:
        raise BadData(f"The exported folder answers differently from your model: {_told(check)}.")
    _compare_prompts(order, source, folder)
    return ExportReport(
        number_format=str(kind).removeprefix("torch."), checks=[check], notes=notes, parameters=parameters
    )


def write_weights(source: Source, folder: Path, dtype: torch.dtype) -> None:
    """Weights, configurations and tokenizer; the answers end at the same tokens as ours. The model is converted."""
    source.model.to(dtype)  # type: ignore[arg-type]
    source.model.generation_config = GenerationConfig(eos_token_id=source.end_ids)
    source.model.save_pretrained(folder)
    copy_tokenizer(source, folder)


def copy_tokenizer(source: Source, folder: Path) -> None:
    """The tokenizer's files, and the chat template where the base brought none."""
    for name in TOKENIZER_FILES:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    path = folder / "tokenizer_config.json"
    config = orjson.loads(path.read_bytes()) if path.is_file() else {"tokenizer_class": "PreTrainedTokenizerFast"}
    # transformers has the last word of a file of its own.
    (folder / "chat_template.jinja").write_text(source.template.source, encoding="utf-8")
    config.pop("chat_template", None)
    config.pop("auto_map", None)
    for name, token in source.template.special_tokens.items():
        config.setdefault(name, token)
    path.write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2))


def compare(tool: str, expected: list[list[int]], found: list[list[int]]) -> Check:
    """Token by token, up to the first difference of each prompt."""
    same = [_shared(ours, theirs) for ours, theirs in zip(expected, found, strict=True)]
    whole = [a == b for a, b in zip(expected, found, strict=True)]
    return Check(
        tool=tool,
        prompts=len(expected),
        same_prompts=sum(whole),
        tokens=sum(len(ours) for ours in expected),
        same_tokens=sum(same),
    )


def _shared(first: list[int], second: list[int]) -> int:
    for position, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return position
    return min(len(first), len(second))


def _told(check: Check) -> str:
    return f"{check.same_prompts} of {check.prompts} answers are the same to the last compared token"


def _load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    return model.eval()


def _compare_prompts(order: ExportOrder, source: Source, folder: Path) -> None:
    """The exported tokenizer and template must read every question as we do. Raises BadData."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    found = []
    for text in order.prompts:
        if order.is_chat:
            turns = [message.model_dump(include={"role", "content"}) for message in conversation(order, text)]
            ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        else:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        found.append(list(ids))
    if any(ids not in found for ids in source.prompts):
        raise BadData("The exported tokenizer reads the questions differently from your model. Nothing was exported.")


def _parameters(path: Path) -> int:
    from safetensors import safe_open

    total = 0
    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            size = 1
            for side in file.get_slice(name).get_shape():
                size *= side
            total += size
    return total
