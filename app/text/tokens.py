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


_BREAK = "\ue0f2"  # private characters, which no text has
_ANCHOR = "\ue0f3"


@lru_cache(maxsize=16)
def _pattern(contents: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(c) for c in sorted(contents, key=len, reverse=True)))


def markers(tokenizer: Tokenizer) -> dict[str, int]:
    """Special tokens by their text."""
    return {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}


def marked_pieces(tokenizer: Tokenizer, rendered: Rendered) -> Iterable[tuple[int, int, int | None]]:
    """(start, end, marker id or None) over the text; a marker inside a content is ordinary text.

    Some markers swallow the blanks beside them (Phi-3's do): then the pieces leave these out.
    """
    special = {t.content: (i, t) for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    text, position = rendered.text, 0
    for match in _pattern(tuple(special)).finditer(text) if special else ():
        if any(start < match.end() and match.start() < end for start, end in rendered.spans):
            continue
        number, token = special[match.group()]
        end = match.start()
        while token.lstrip and end > position and text[end - 1].isspace():
            end -= 1
        if end > position:
            yield position, end, None
        yield match.start(), match.end(), number
        position = match.end()
        while token.rstrip and position < len(text) and text[position].isspace():
            position += 1
    if position < len(text):
        yield position, len(text), None


def puts_blank_first(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts a blank before the first piece only (Metaspace, "first"), not after a marker."""
    marker = next(iter(markers(tokenizer)), None)
    if marker is None:
        return False
    tokenizer.encode_special_tokens = False
    whole = tokenizer.encode(marker + "a", add_special_tokens=False).ids
    tokenizer.encode_special_tokens = True
    return whole[1:] != tokenizer.encode("a", add_special_tokens=False).ids


def _plain(tokenizer: Tokenizer, text: str, is_inner: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets of ordinary text; `is_inner`: as it is encoded in the middle, behind something else."""
    if not is_inner:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets
    skipped = len(tokenizer.encode(_ANCHOR, add_special_tokens=False).ids)
    encoding = tokenizer.encode(_ANCHOR + text, add_special_tokens=False)
    return encoding.ids[skipped:], [(a - 1, b - 1) for a, b in encoding.offsets[skipped:]]


def _encode(tokenizer: Tokenizer, rendered: Rendered) -> tuple[list[int], list[tuple[int, int]], list[bool]]:
    """Ids, character offsets and whether each token is a marker."""
    has_first = puts_blank_first(tokenizer)
    tokenizer.encode_special_tokens = True
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    is_marker: list[bool] = []
    for start, end, marker in marked_pieces(tokenizer, rendered):
        if marker is not None:
            ids.append(marker)
            offsets.append((start, end))
            is_marker.append(True)
            continue
        text = rendered.text[start:end] if rendered.spans else rendered.text[start:end].replace(_BREAK, "")
        piece_ids, piece_offsets = _plain(tokenizer, text, has_first and start > 0)
        ids.extend(piece_ids)
        offsets.extend((start + a, start + b) for a, b in piece_offsets)
        is_marker.extend([False] * len(piece_ids))
    return ids, offsets, is_marker


def encode_prompt(tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation up to where the next answer begins. Raises TemplateFault when the template refuses it."""
    try:
        rendered = template.rendered(messages, add_generation_prompt=True)
    except TemplateFault:
        rendered = None
    if rendered is None:
        return _encode_rewritten(tokenizer, template, messages)
    return _encode(tokenizer, rendered)[0]


def _encode_rewritten(tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]) -> list[int]:
    """For templates that rewrite contents (reasoning models drop earlier thoughts): nobody knows where they lie.

    Markers inside contents are broken before rendering; what the pattern finds then are the template's own.
    """
    special = markers(tokenizer)
    pattern = _pattern(tuple(special)) if special else None

    def broken(content: str) -> str:
        return pattern.sub(lambda match: _BREAK.join(match.group()), content) if pattern else content

    text = template.text(
        [message.model_copy(update={"content": broken(message.content)}) for message in messages],
        add_generation_prompt=True,
    )
    return _encode(tokenizer, Rendered(text, ()))[0]


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
        learned_span(template, example.messages, number, rendered, offsets, is_marker)
        for number, message in enumerate(example.messages)
        if message.role == "assistant" and message.train
    ]
    learn = [any(start <= a and b <= end and b > a for start, end in learned) for a, b in offsets]
    return Encoded(ids, learn, offsets, rendered.text)


def learned_span(
    template: ChatTemplate,
    messages: Sequence[Message],
    number: int,
    rendered: Rendered,
    offsets: list[tuple[int, int]],
    is_marker: list[bool],
) -> tuple[int, int]:
    """From where the generation prompt ends to the end of the first marker after the answer."""
    start, content_end = rendered.spans[number]
    opening = _opening(template, tuple(m.role for m in messages[: number + 1]))
    if opening is None:
        raise TemplateFault(
            "The chat template begins an answer differently when it asks for one, so it is unclear what to learn. "
            "Choose another base model."
        )
    # Some templates give the opening to the last answer only.
    if rendered.text.endswith(opening, 0, start):
        start -= len(opening)
    next_start = rendered.spans[number + 1][0] if number + 1 < len(messages) else len(rendered.text)
    for (a, b), marked in zip(offsets, is_marker, strict=True):
        if marked and content_end <= a < next_start:
            return start, b
    return start, content_end


@lru_cache(maxsize=1024)
def _opening(template: ChatTemplate, roles: tuple[str, ...]) -> str | None:
    """What stands between the end of the generation prompt and the last answer, which the model writes itself (often
    nothing, an empty thought for some); None when the prompt is no prefix of the conversation."""
    messages = [Message(role=role, content=f"t{i}") for i, role in enumerate(roles)]
    prompt = template.text(messages[:-1], add_generation_prompt=True)
    whole = template.rendered(messages)
    content_start = whole.spans[-1][0]
    if not whole.text.startswith(prompt) or len(prompt) > content_start:
        return None
    return whole.text[len(prompt) : content_start]
