"""Everything a run needs before its first step: model, tokenizer, learning weights, token rows, prompts."""

from collections.abc import Generator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from app.contracts import events as e
from app.contracts.conversation import Example, Message
from app.contracts.recipe import RecipeSpec, TrainOrder
from app.text.template import CHATML
from worker.engine import learning, loading, methods, optim, ranks, scratch, tokenising
from worker.engine import tokenizer as tokenizers_of_ours
from worker.engine.answers import LONGEST_ANSWER, Prompt, fits
from worker.engine.data import TokenRows, read_examples
from worker.engine.devices import Device
from worker.engine.encoding import Encoder
from worker.engine.errors import BadData
from worker.engine.generate import Loaded
from worker.engine.methods import Method
from worker.engine.methods.four_bit import refuse_elsewhere
from worker.engine.methods.last_layers import LastLayers, quiet
from worker.engine.prefix import Prefix
from worker.engine.prefix import plan as plan_prefix
from worker.engine.tokenizer_files import load_chat_template, load_tokenizer

TESTED_PROMPTS = 8
SHOWN_CHARACTERS = 60  # of a plain text: how much of it is given as the start to go on from


@dataclass(frozen=True)
class Reference:
    """Of preferences: log-probability in nats of every token row's answer before training; 0 where never asked."""

    train: np.ndarray
    validation: np.ndarray


@dataclass(frozen=True)
class Material:
    """What the loop works on; `loaded` is the same model, ready to answer.

    `prompts` are for samples, `tests` are validation prompts for the stop test.
    """

    model: PreTrainedModel
    loaded: Loaded
    method: Method
    train_rows: TokenRows
    validation_rows: TokenRows
    prompts: list[Prompt]
    tests: list[Prompt]
    embedding_ids: set[int]
    parameters: int
    prefix: Prefix | None = None
    reference: Reference | None = None


def prepare(order: TrainOrder, device: Device, micro_batch_size: int) -> Generator[e.EngineEvent, None, Material]:
    """Load or create, mark what learns, tokenise. Returns Material; raises BadData."""
    recipe, data_dir = order.recipe, Path(order.data_dir)
    if recipe.method == "lora" and recipe.lora.four_bit:
        refuse_elsewhere(device)
    optim.refuse_elsewhere(recipe, device.device)
    if recipe.method == "scratch":
        tokenizer_dir = yield from _scratch_tokenizer(order)
    elif order.base is None:
        raise BadData("The recipe needs a base model, and none was given.")
    else:
        tokenizer_dir = Path(order.base.base_dir)
    tokenizer = load_tokenizer(tokenizer_dir)

    yield e.Progress(phase="loading")
    if recipe.method == "scratch":
        assert recipe.scratch
        ours = tokenizer.get_vocab(with_added_tokens=True)
        model = scratch.create(
            recipe.scratch,
            vocabulary_size=tokenizer.get_vocab_size(),
            end_ids=[ours[tokenizers_of_ours.TURN_END], ours[tokenizers_of_ours.END_OF_TEXT]],
            pad_id=ours[tokenizers_of_ours.PAD],
        )
    else:
        assert order.base
        frozen = torch.float32 if recipe.method == "full" else device.compute
        model = loading.load_model(order.base, frozen)
    end_ids = loading.end_ids(model, tokenizer, tokenizer_dir)
    if not end_ids:
        raise BadData("The base model names no end token, so it could never stop. Choose another base model.")
    if recipe.learn_from == "preferences":
        quiet(model.modules())  # the reference has no dropout; what is compared with it must have none
    # Of an adapter the base alone is counted, as on every other page; in 4 bit two weights share a place.
    parameters = sum(parameter.numel() for parameter in model.parameters())
    method = methods.choose(recipe, tokenizer_dir)
    method.prepare(model, recipe)
    if not (recipe.shards and ranks.count() > 1):  # what is split moves in parts: the whole may not fit there
        model.to(device.device)  # type: ignore[arg-type]
        learning.attach(model)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    embeddings.add(id(model.get_output_embeddings().weight))

    yield e.Progress(phase="tokenising")
    context = getattr(model.config, "max_position_embeddings", None)
    asked = tokenising.of(order, tokenizer, load_chat_template(tokenizer_dir, tokenizer), end_ids, context)
    train_rows, validation_rows = asked.rows()
    encoder, limit, pairs = asked.encoder, asked.limit, asked.is_of_pairs
    if not len(train_rows) and pairs and not train_rows.skipped_rows:
        raise BadData(
            "No row of this version has a preferred and a rejected answer. Learn from the answers instead, or map the "
            "two columns of answers in the data and freeze again."
        )
    if not len(train_rows):
        raise BadData(
            f"No training row can be used: {train_rows.skipped_rows} are longer than {limit} tokens or have no "
            "answer to learn. Raise the longest row in the recipe or check the columns of the dataset."
        )
    is_chat = bool(train_rows.is_chat.any())
    own = [_own_prompt(text, encoder, is_chat) for text in recipe.sample_prompts]
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    loaded = Loaded(model, tokenizer, encoder.template, frozenset(end_ids), limit, size)
    questions = (_prompt(row, encoder) for row in read_examples(data_dir, "validation"))
    tests = list(islice((p for p in questions if p and fits(loaded, p, LONGEST_ANSWER)), TESTED_PROMPTS))
    prompts = [prompt for prompt in own or tests if fits(loaded, prompt, recipe.sample_max_tokens)]
    prefix = None
    if isinstance(method, LastLayers):
        prefix = yield from _prefix(order, device, micro_batch_size, model, method, train_rows, validation_rows)
    return Material(model, loaded, method, train_rows, validation_rows, prompts, tests, embeddings, parameters, prefix)


def looked_at(rows: TokenRows, recipe: RecipeSpec) -> np.ndarray:
    """The validation rows of every evaluation: the same ones each time, in their order."""
    generator = torch.Generator().manual_seed(recipe.seed)
    return np.sort(torch.randperm(len(rows), generator=generator)[: recipe.validation_rows].numpy())


def _prefix(
    order: TrainOrder,
    device: Device,
    micro_batch_size: int,
    model: PreTrainedModel,
    method: LastLayers,
    rows: TokenRows,
    validation_rows: TokenRows,
) -> Generator[e.EngineEvent, None, Prefix | None]:
    """What is kept of the frozen layers; what a person should know of it is said."""
    if method.has_quieted:
        message = "Dropout is off in the layers that do not learn; in those that learn it is as the base model has it."
        yield e.Warned(step=0, kind="dropout", message=message)
    seen = looked_at(validation_rows, order.recipe)
    blocks, folder, reserve = (method.frozen, method.first), Path(order.out_dir), order.storage_reserve_bytes
    prefix, why_not = plan_prefix(
        model, blocks, (rows, validation_rows), seen, order.recipe, micro_batch_size, device, folder, reserve
    )
    if why_not:
        yield e.Warned(step=0, kind="frozen_layers", message=why_not)
    return prefix


def _scratch_tokenizer(order: TrainOrder) -> Generator[e.EngineEvent, None, Path]:
    """Learn the tokenizer once per run; later attempts find it in the run's folder."""
    folder = Path(order.out_dir) / "tokenizer"
    spec = order.recipe.scratch
    assert spec
    if not (folder / "tokenizer.json").is_file():
        yield e.Progress(phase="tokenizer")
        texts = (text for row in read_examples(Path(order.data_dir), "train") for text in _texts(row))
        learned = tokenizers_of_ours.train(spec, tokenizers_of_ours.batched(texts))
        tokenizers_of_ours.save(learned, folder, chat_template=CHATML, context_length=spec.context_length)
    return folder


def _texts(row: Example) -> list[str]:
    return [row.text] if row.kind == "text" else [message.content for message in row.messages]


def _prompt(row: Example, encoder: Encoder) -> Prompt | None:
    """The question of a validation row: all before its last answer, or the start of a plain text.

    None when there is no answer to compare with.
    """
    if row.kind == "text":
        start = row.text[:SHOWN_CHARACTERS]
        return Prompt(start, text=start) if start.strip() else None
    last = max((i for i, m in enumerate(row.messages) if m.role == "assistant"), default=0)
    before = encoder.with_system(row.messages[:last])
    if not last:
        return None
    shown = next((m.content for m in reversed(before) if m.role == "user"), "")
    return Prompt(shown, messages=before, answer_tokens=len(encoder.plain(row.messages[last].content)) + 1)


def _own_prompt(text: str, encoder: Encoder, is_chat: bool) -> Prompt:
    if not is_chat:
        return Prompt(text, text=text)
    return Prompt(text, messages=encoder.with_system([Message(role="user", content=text)]))
