"""Conversations as token ids with a loss mask. Template markers become control ids; the same text typed by a person
stays plain text, so nobody can forge a role (prompt injection by markers)."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tokenizers import Tokenizer

from app.contracts.conversation import Example, Message
from app.text.template import ChatTemplate, Rendered, TemplateFault


@dataclass(frozen=True)
class Encoded:
    """Token ids, for each whether it is learned, and its character span in `text`; three sequences of one length."""

    ids: list[int]
    learn: list[bool]
    offsets: list[tuple[int, int]]
    text: str


@lru_cache(maxsize=16)
def _pattern(contents: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(c) for c in sorted(contents, key=len, reverse=True)))


def markers(tokenizer: Tokenizer) -> dict[str, int]:
    """Special tokens by their text."""
    return {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}


def _pieces(tokenizer: Tokenizer, rendered: Rendered) -> Iterable[tuple[int, int, int | None]]:
    """(start, end, marker id or None) over the whole text; a marker inside a content is ordinary text."""
    special = markers(tokenizer)
    position = 0
    if special:
        for match in _pattern(tuple(special)).finditer(rendered.text):
            if any(start < match.end() and match.start() < end for start, end in rendered.spans):
                continue
            if match.start() > position:
                yield position, match.start(), None
            yield match.start(), match.end(), special[match.group()]
            position = match.end()
    if position < len(rendered.text):
        yield position, len(rendered.text), None


def _encode(tokenizer: Tokenizer, rendered: Rendered) -> tuple[list[int], list[tuple[int, int]], list[bool]]:
    """Ids, character offsets and whether each token is a marker."""
    tokenizer.encode_special_tokens = True
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    is_marker: list[bool] = []
    for start, end, marker in _pieces(tokenizer, rendered):
        if marker is not None:
            ids.append(marker)
            offsets.append((start, end))
            is_marker.append(True)
            continue
        encoding = tokenizer.encode(rendered.text[start:end], add_special_tokens=False)
        ids.extend(encoding.ids)
        offsets.extend((start + a, start + b) for a, b in encoding.offsets)
        is_marker.extend([False] * len(encoding.ids))
    return ids, offsets, is_marker


def encode_prompt(tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation up to where the next answer begins."""
    return _encode(tokenizer, template.rendered(messages, add_generation_prompt=True))[0]


def encode_text(tokenizer: Tokenizer, text: str, end_id: int | None = None) -> list[int]:
    """Ids of plain text in which typed markers stay text, closed by `end_id` when given."""
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return [*ids, end_id] if end_id is not None else ids


def encode_example(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    example: Example,
    learn_prompts: bool = False,
    end_id: int | None = None,
) -> tuple[list[int], list[bool]]:
    """Ids and loss mask of one row. Answers are learned with their end-of-turn marker; plain text is learned whole.

    Raises TemplateFault when the template hides where an answer begins.
    """
    encoded = encode_shown(tokenizer, template, example, learn_prompts, end_id)
    return encoded.ids, encoded.learn


def encode_shown(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    example: Example,
    learn_prompts: bool = False,
    end_id: int | None = None,
) -> Encoded:
    """As `encode_example`, with the text and offsets that the token view draws."""
    if example.kind == "text":
        tokenizer.encode_special_tokens = True
        encoding = tokenizer.encode(example.text, add_special_tokens=False)
        offsets = list(encoding.offsets)
        ids = list(encoding.ids)
        if end_id is not None:
            ids.append(end_id)
            offsets.append((len(example.text), len(example.text)))
        return Encoded(ids, [True] * len(ids), offsets, example.text)
    rendered = template.rendered(example.messages)
    ids, offsets, is_marker = _encode(tokenizer, rendered)
    if learn_prompts:
        return Encoded(ids, [True] * len(ids), offsets, rendered.text)
    learned = [
        _learned_span(template, example.messages, number, rendered, offsets, is_marker)
        for number, message in enumerate(example.messages)
        if message.role == "assistant" and message.train
    ]
    learn = [any(start <= a and b <= end and b > a for start, end in learned) for a, b in offsets]
    return Encoded(ids, learn, offsets, rendered.text)


def _learned_span(
    template: ChatTemplate,
    messages: Sequence[Message],
    number: int,
    rendered: Rendered,
    offsets: list[tuple[int, int]],
    is_marker: list[bool],
) -> tuple[int, int]:
    """From where the generation prompt ends to the end of the first marker after the answer."""
    start, content_end = rendered.spans[number]
    gap = _prompt_end(template, tuple(m.role for m in messages[: number + 1]))
    if gap is None:
        raise TemplateFault(
            "The chat template begins an answer differently when it asks for one, so it is unclear what to learn. "
            "Choose another base model."
        )
    start += gap
    next_start = rendered.spans[number + 1][0] if number + 1 < len(messages) else len(rendered.text)
    for (a, b), marked in zip(offsets, is_marker, strict=True):
        if marked and content_end <= a < next_start:
            return start, b
    return start, content_end


@lru_cache(maxsize=1024)
def _prompt_end(template: ChatTemplate, roles: tuple[str, ...]) -> int | None:
    """Characters between the end of the generation prompt and the answer (0, or negative for an opening the model
    writes itself); None when the prompt is no prefix of the conversation."""
    messages = [Message(role=role, content=f"t{i}") for i, role in enumerate(roles)]
    prompt = template.text(messages[:-1], add_generation_prompt=True)
    whole = template.rendered(messages)
    if not whole.text.startswith(prompt):
        return None
    return len(prompt) - whole.spans[-1][0]
