"""The model that is exported: loaded once, its answers to the compared prompts kept."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, PreTrainedModel

from app.contracts.conversation import Message
from app.contracts.export import COMPARED_TOKENS, ExportOrder
from app.contracts.recipe import ModelFiles
from app.text.limited import limited
from app.text.template import ChatTemplate, TemplateFault, load_template
from app.text.tokens import encode_prompt, encode_text
from worker.engine import loading
from worker.engine.errors import BadData
from worker.engine.tokenizer_files import load_tokenizer


@dataclass
class Source:
    """The model with every overlay merged, in fp32 on the CPU; `answers` are token ids, one list a prompt."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    template: ChatTemplate
    folder: Path
    end_ids: list[int]
    context_length: int
    prompts: list[list[int]]
    answers: list[list[int]]


def tokenizer_folder(files: ModelFiles) -> Path:
    """The newest folder with a tokenizer: what was trained on top may bring its own template."""
    folders = [Path(overlay.dir) for overlay in reversed(files.overlays)] + [Path(files.base_dir)]
    return next((folder for folder in folders if (folder / "tokenizer.json").is_file()), folders[-1])


def load(order: ExportOrder) -> Source:
    """Load the model and let it answer. Raises BadData with a sentence when it cannot be used."""
    folder = tokenizer_folder(order.files)
    tokenizer = load_tokenizer(folder)
    model = plain(loading.load_model(order.files, torch.float32))
    end_ids = loading.end_ids(model, tokenizer, folder)
    try:
        template = limited(load_template(folder, tokenizer.get_vocab()))
        prompts = [
            encode_prompt(tokenizer, template, conversation(order, text))
            if order.is_chat
            else encode_text(tokenizer, text)
            for text in order.prompts
        ]
    except TemplateFault as fault:
        raise BadData(str(fault)) from fault
    context = getattr(model.config, "max_position_embeddings", None) or 2048
    prompts = [ids for ids in prompts if ids and len(ids) < context]
    if not prompts:
        raise BadData("No question to compare with fits into this model's context. Shorten the objective's prompt.")
    source = Source(model, tokenizer, template, folder, end_ids, context, prompts, [])
    source.answers = answers(model, source)
    return source


def conversation(order: ExportOrder, text: str) -> list[Message]:
    """One question, behind the prompt that the model was trained with."""
    system = [Message(role="system", content=order.system_prompt)] if order.system_prompt else []
    return [*system, Message(role="user", content=text)]


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same attention for every model that is compared, and no sampling habits of the base."""
    model.set_attn_implementation("sdpa")
    model.generation_config = GenerationConfig()
    return model


@torch.inference_mode()
def answers(model: PreTrainedModel, source: Source) -> list[list[int]]:
    """The greedy answer to each prompt: at most the compared tokens, ended by an end token or the context."""
    said = []
    for ids in source.prompts:
        count = min(COMPARED_TOKENS, source.context_length - len(ids))
        rows = torch.tensor([ids])
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=source.end_ids or None,
            pad_token_id=(source.end_ids or [0])[0],
        )
        made = model.generate(rows, attention_mask=torch.ones_like(rows), generation_config=settings)  # type: ignore[operator]
        said.append(made[0, len(ids) :].tolist())
    return said
