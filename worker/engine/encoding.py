"""Examples and prompts as token ids, through the one renderer of chat templates."""

from dataclasses import dataclass

from tokenizers import Tokenizer

from app.contracts.conversation import Example, Message

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Encoder:
    """Turns rows into (ids, learn) for one tokenizer and template. `text_end_id` closes a plain text."""

    tokenizer: Tokenizer
    template: str
    text_end_id: int
    learn_prompts: bool
    system_prompt: str = ""

    def example(self, example: Example) -> tuple[list[int], list[bool]]:
        """Token ids of a row and which of them are learned."""
        if example.kind == "text":
            ids = [*self.plain(example.text), self.text_end_id]
            return ids, [True] * len(ids)
        ids, learn = [], []
        for message in self.messages(example.messages):
            head, body = self.plain(f"<|im_start|>{message.role}\n"), self.plain(f"{message.content}<|im_end|>")
            gap = self.plain("\n")
            ids += head + body + gap
            learned = self.learn_prompts or (message.role == "assistant" and message.train)
            learn += [self.learn_prompts] * len(head) + [learned] * len(body) + [False] * len(gap)
        return ids, learn

    def prompt(self, messages: list[Message]) -> list[int]:
        """Token ids up to where the answer begins."""
        ids, _ = self.example(Example(rid=0, kind="chat", messages=messages))
        return [*ids, *self.plain("<|im_start|>assistant\n")]

    def plain(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def messages(self, messages: list[Message]) -> list[Message]:
        """The recipe's system prompt goes first where a conversation has none of its own."""
        if not self.system_prompt or (messages and messages[0].role == "system"):
            return messages
        return [Message(role="system", content=self.system_prompt), *messages]
