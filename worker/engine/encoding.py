"""Examples and prompts as token ids, through the one renderer of chat templates."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from app.contracts.conversation import Example, Message
from app.text.accelerated import Accelerator, proved
from app.text.template import ChatTemplate, TemplateFault
from app.text.tokens import encode_example, encode_prompt, encode_text
from worker.engine.errors import BadData

EncodedRow = tuple[list[int], list[bool]]


@dataclass(frozen=True)
class Encoder:
    """Rows and prompts for one tokenizer and template. `text_end_id` closes a plain text; `accelerator` gives the same
    ids sooner."""

    tokenizer: Tokenizer
    template: ChatTemplate
    text_end_id: int
    learn_prompts: bool = False
    system_prompt: str = ""
    accelerator: Accelerator | None = None

    def example(self, example: Example) -> tuple[list[int], list[bool]]:
        """Token ids of a row and which of them are learned. Raises BadData when the template hides that."""
        if example.kind == "chat":
            example = example.model_copy(update={"messages": self.with_system(example.messages)})
        try:
            if self.accelerator is not None:
                return self.accelerator.example(self.template, example, self.learn_prompts, self.text_end_id)
            return encode_example(self.tokenizer, self.template, example, self.learn_prompts, self.text_end_id)
        except TemplateFault as fault:
            raise BadData(f"Row {example.rid}: {fault}") from fault

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to where the next answer begins."""
        try:
            return encode_prompt(self.tokenizer, self.template, self.with_system(messages))
        except TemplateFault as fault:
            raise BadData(str(fault)) from fault

    def plain(self, text: str) -> list[int]:
        """Token ids of a text to go on from."""
        return encode_text(self.tokenizer, text)

    def with_system(self, messages: Sequence[Message]) -> list[Message]:
        """The recipe's system prompt goes first where a conversation has none of its own."""
        if not self.system_prompt or (messages and messages[0].role == "system"):
            return list(messages)
        return [Message(role="system", content=self.system_prompt), *messages]


def accelerated(encoder: Encoder, samples: Iterable[Example]) -> Encoder:
    """The encoder with a faster way to the same ids and masks, where it is proved equal on these rows."""
    asked = (
        row.model_copy(update={"messages": encoder.with_system(row.messages)}) if row.kind == "chat" else row
        for row in samples
    )
    made = proved(encoder.tokenizer, encoder.template, asked, encoder.learn_prompts, encoder.text_end_id)
    return replace(encoder, accelerator=made)


def at_need(encoder: Encoder, samples: Callable[[], Iterable[Example]]) -> Callable[[Example], EncodedRow]:
    """`encoder.example`, accelerated with the first row that is asked for: tokens that are kept need no proof."""
    chosen: list[Encoder] = []

    def example(row: Example) -> EncodedRow:
        if not chosen:
            chosen.append(accelerated(encoder, samples()))
        return chosen[0].example(row)

    return example
