"""Examples and prompts as token ids, through the one renderer of chat templates."""

from dataclasses import dataclass

from tokenizers import Tokenizer

from app.contracts.conversation import Example, Message

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Encoder:
    """Turns rows into (ids, learn) for one tokenizer and template. `text_end_id` closes a plain text."""

    tokenizer: Tokenizer
    template: object
    text_end_id: int
    learn_prompts: bool
    system_prompt: str = ""

    def example(self, example: Example) -> tuple[list[int], list[bool]]:
        if example.kind == "text":
            ids = [*self.tokenizer.encode(example.text, add_special_tokens=False).ids, self.text_end_id]
            return ids, [True] * len(ids)
        ids, learn = [], []
        t = self.tokenizer
        for m in self.messages(example.messages):
            head = [t.token_to_id("<|im_start|>"), *t.encode(m.role + "\n", add_special_tokens=False).ids]
            body = [*t.encode(m.content, add_special_tokens=False).ids, t.token_to_id("<|im_end|>")]
            nl = t.encode("\n", add_special_tokens=False).ids
            ids += head + body + nl
            w = self.learn_prompts or (m.role == "assistant" and m.train)
            learn += [self.learn_prompts] * len(head) + [w] * len(body) + [False] * len(nl)
        return ids, learn

    def prompt(self, messages: list[Message]) -> list[int]:
        t = self.tokenizer
        ids, _ = self.example(Example(rid=0, kind="chat", messages=messages))
        return [*ids, t.token_to_id("<|im_start|>"), *t.encode("assistant\n", add_special_tokens=False).ids]

    def messages(self, messages: list[Message]) -> list[Message]:
        """The recipe's system prompt goes first where a conversation has none of its own."""
        if not self.system_prompt or (messages and messages[0].role == "system"):
            return messages
        return [Message(role="system", content=self.system_prompt), *messages]
