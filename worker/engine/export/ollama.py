"""An Ollama Modelfile: the chat template in Go's template language, made of what the template is seen to write."""

from dataclasses import dataclass
from pathlib import Path

from app.contracts.conversation import Message
from app.contracts.export import ExportOrder
from app.text.template import ChatTemplate, TemplateFault
from worker.engine.export.source import Source

ROLES = ("system", "user", "assistant")
_PROBES = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)
_MARK = "\ue0f4"


@dataclass(frozen=True)
class Pieces:
    """A template in pieces: what opens the text, what stands around each role's content, what asks for an answer."""

    opening: str
    around: dict[str, tuple[str, str]]
    asking: str

    def text(self, messages: list[Message]) -> str:
        """The conversation as Ollama writes it with `go`."""
        said = "".join(self.around[m.role][0] + m.content + self.around[m.role][1] for m in messages)
        return self.opening + said + self.asking

    def go(self) -> str:
        """The same in Go's template language."""
        turns = "".join(
            f'{{{{ {"if" if role == ROLES[0] else "else if"} eq .Role "{role}" }}}}'
            f"{quoted(before)}{{{{ .Content }}}}{quoted(after)}"
            for role, (before, after) in self.around.items()
        )
        return f"{quoted(self.opening)}{{{{ range .Messages }}}}{turns}{{{{ end }}}}{{{{ end }}}}{quoted(self.asking)}"


def quoted(text: str) -> str:
    """Text as a Go template says it: braces as a string of Go."""
    return text.replace("{{", '{{ "{{" }}')


def pieces(template: ChatTemplate) -> Pieces | None:
    """The template in pieces, None where it does more than put something around each message.

    Found by rendering marked contents; then every probe must come out the same.
    """
    try:
        plain = template.text([_said("user", _MARK)])
        asked = template.text([_said("user", _MARK)], add_generation_prompt=True)
        both = template.text([_said("system", "s" + _MARK), _said("user", _MARK)])
        turns = [_said(role, name + _MARK) for role, name in (("user", "u"), ("assistant", "a"), ("user", "v"))]
        three = template.text(turns)
        if not asked.startswith(plain) or both.count(_MARK) != 2 or three.count(_MARK) != 3:
            return None
        before_user, after_user = plain.split(_MARK)
        first = three.split(_MARK)
        # Between the answer and the next question stand the answer's end and the question's beginning.
        between_user, between = first[1].removesuffix("a"), first[2].removesuffix("v")
        opening = _opening(before_user, between)
        user = (before_user.removeprefix(opening), after_user)
        if not between.endswith(user[0]) or not between_user.startswith(after_user):
            return None
        assistant = (between_user.removeprefix(after_user), between.removesuffix(user[0]))
        head, middle, _ = both.split(_MARK)
        if not middle.endswith(user[0]) or not head.endswith("s") or not head.startswith(opening):
            return None
        system = (head.removesuffix("s").removeprefix(opening), middle.removesuffix(user[0]))
        found = Pieces(opening, dict(zip(ROLES, (system, user, assistant), strict=True)), asked.removeprefix(plain))
        for roles in _PROBES:
            messages = [_said(role, f"{role} {number} says so.") for number, role in enumerate(roles)]
            if found.text(messages) != template.text(messages, add_generation_prompt=True):
                return None
    except (TemplateFault, ValueError):
        return None
    return found


def _opening(before_first: str, between: str) -> str:
    """What stands before the first question only, such as the token that begins every text."""
    for cut in range(len(before_first) + 1):
        if between.endswith(before_first[cut:]):
            return before_first[:cut]
    return before_first


def _said(role: str, content: str) -> Message:
    return Message.model_validate({"role": role, "content": content})


def write_modelfile(folder: Path, file_name: str, order: ExportOrder, source: Source) -> list[str]:
    """Write `Modelfile` beside the GGUF file; returns notes for people."""
    lines = [f"FROM ./{file_name}"]
    notes = []
    found = pieces(source.template) if order.is_chat else None
    if not order.is_chat:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    elif found is not None and '"""' not in found.go():
        lines.append(f'TEMPLATE """{found.go()}"""')
    else:
        notes.append(
            "The chat template cannot be said in Ollama's language, so the Modelfile has none: use llama.cpp's server "
            "with --jinja, which reads the template in the file."
        )
    if order.system_prompt and '"""' not in order.system_prompt:
        lines.append(f'SYSTEM """{order.system_prompt}"""')
    names = [source.tokenizer.id_to_token(number) for number in source.end_ids]
    lines += [f'PARAMETER stop "{name}"' for name in names if name and '"' not in name]
    lines.append(f"PARAMETER num_ctx {source.context_length}")
    (folder / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return notes
