"""Chat templates in a sandbox: the same text as transformers' `apply_chat_template`, and where each content lies in it.

A sandbox stops code, not waste: templates from outside are first tried in a limited process (`app.text.check`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.contracts.conversation import Message

# For bases without a template of their own whose tokenizer knows the two markers.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# For bases without markers: plain headings, and the end token closes an answer.
PLAIN = (
    "{% for message in messages %}{{ '### ' + message['role'] + '\\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\\n' }}{% endif %}"
)
_LIMIT_CHARACTERS = 20_000_000


class TemplateFault(ValueError):
    """The template cannot render these messages, or hides where an answer begins; the message says which and why."""


class _Generation(Extension):
    """`{% generation %}` of transformers: the block's text as it is."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Any) -> Any:
        return caller()


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    """The same settings and globals as transformers 5.23 gives to chat templates. Output is text, not HTML."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # noqa: DTZ005 - as transformers
    return environment


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation and the character span (start, end) of each message's content in it."""

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A chat template with the special tokens it may name (bos_token, eos_token, …)."""

    source: str
    special_tokens: dict[str, str] = field(default_factory=dict)

    @cached_property
    def _compiled(self) -> jinja2.Template:
        try:
            return _environment().from_string(self.source)
        except jinja2.exceptions.TemplateError as error:
            raise TemplateFault(
                f"The chat template has an error in line {getattr(error, 'lineno', '?')}: {error}"
            ) from error

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The conversation as the model reads it. Raises TemplateFault in words when the template refuses."""
        turns = [{"role": m.role, "content": m.content, **_extras(m)} for m in messages]
        return self._render(turns, add_generation_prompt)

    def _render(self, turns: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        try:
            text = self._compiled.render(
                messages=turns,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self.special_tokens,
            )
        except jinja2.exceptions.SecurityError as error:
            raise TemplateFault(f"The chat template tries to reach outside its sandbox: {error}") from error
        except (jinja2.exceptions.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise TemplateFault(f"The chat template refuses this conversation: {error}") from error
        if len(text) > _LIMIT_CHARACTERS:
            raise TemplateFault("The chat template writes more than 20 million characters for one conversation.")
        return text

    def rendered(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> Rendered:
        """The text and each content's span, found by rendering once more with marks in place of the contents.

        Templates may strip a content; anything else they do to it makes the spans unknown: TemplateFault.
        """
        text = self.text(messages, add_generation_prompt=add_generation_prompt)
        marks = [f"\ue0f0{number}\ue0f1" for number in range(len(messages))]
        marked = self._render(
            [{"role": m.role, "content": mark, **_extras(m)} for m, mark in zip(messages, marks, strict=True)],
            add_generation_prompt,
        )
        spans: list[tuple[int, int]] = []
        position = 0
        for number, (message, mark) in enumerate(zip(messages, marks, strict=True)):
            head, found, marked = marked.partition(mark)
            if not found or not text.startswith(head, position):
                raise TemplateFault(f"The chat template leaves out or moves message {number + 1} ({message.role}).")
            position += len(head)
            following = marked.partition("\ue0f0")[0]
            content = next((c for c in _variants(message.content) if text.startswith(c + following, position)), None)
            if content is None:
                raise TemplateFault(f"The chat template changes the text of message {number + 1} ({message.role}).")
            spans.append((position, position + len(content)))
            position += len(content)
        if text[position:] != marked:
            raise TemplateFault("The chat template writes different things after the last message for different texts.")
        return Rendered(text, tuple(spans))


def _variants(content: str) -> tuple[str, ...]:
    return content, content.strip(), content.rstrip(), content.lstrip(), content.strip("\n")


def _extras(message: Message) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    if message.name is not None:
        extras["name"] = message.name
    if message.tool_calls:
        extras["tool_calls"] = message.tool_calls
    return extras


def brought_template(folder: Path) -> tuple[str, dict[str, str]]:
    """The template that a model folder brings ("" for none): chat_template.jinja, or tokenizer_config.json; and the
    special tokens that it may name.

    Raises TemplateFault when the folder names several templates and none is called "default".
    """
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    special: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            special[name] = value
    source = config.get("chat_template")
    file = folder / "chat_template.jinja"
    if file.is_file():
        source = file.read_text("utf-8")
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
        if source is None:
            raise TemplateFault(f"The model has templates named {sorted(map(str, named))}, none of them “default”.")
    return str(source or ""), special


def load_template(folder: Path, vocabulary: dict[str, int]) -> ChatTemplate:
    """The template of a model folder, or our default for its vocabulary. Raises TemplateFault."""
    source, special = brought_template(folder)
    if not source:
        source = CHATML if {"<|im_start|>", "<|im_end|>"} <= vocabulary.keys() else PLAIN
        special.setdefault("eos_token", "<|im_end|>" if source is CHATML else _end_token(vocabulary))
    return ChatTemplate(source, special)


def _end_token(vocabulary: dict[str, int]) -> str:
    for name in ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>"):
        if name in vocabulary:
            return name
    raise TemplateFault(
        "The base model has no end token that we know, so answers could never end. Choose another base."
    )
