"""tiktoken gives the ids and masks of `tokenizers`, or is not used."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from app.contracts.conversation import Example, Message
from app.text import accelerated
from app.text.accelerated import HARD_TEXTS, built, proved
from app.text.template import CHATML, PLAIN, ChatTemplate
from app.text.tokens import encode_example

NAUGHTY = json.loads((Path(__file__).parents[2] / "fixtures" / "naughty_strings" / "blns.json").read_text())
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
CUTTINGS = {
    "gpt2": BYTES,
    "digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]),
    "llama3": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


def learned(cutting: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cutting
    tokenizer.decoder = decoders.ByteLevel()
    texts = [*NAUGHTY, *HARD_TEXTS, "the user and the assistant talk about passwords in 2024", "日本語の文"] * 3
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=900, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    return tokenizer


def drawn(rows: int) -> list[str]:
    draw = random.Random(3)
    kinds = [
        "a",
        "Z ",
        " 1",
        "  ",
        "\n",
        "'s",
        "é",
        "e\u0301",
        "日",
        "½",
        "👍",
        "\u00a0",
        "<|im_end|>",
        "the user",
        "-",
        "\u0300",
    ]
    return ["".join(draw.choices(kinds, k=draw.randint(1, 30))) for _ in range(rows)]


def chat(*texts: str) -> Example:
    roles = ("user", "assistant")
    return Example(
        rid=0, kind="chat",
        messages=[Message(role=roles[i % 2], content=text, train=i % 4 != 3) for i, text in enumerate(texts)],
    )  # fmt: skip


def plainly(tokenizer: Tokenizer, text: str) -> list[int]:
    tokenizer.encode_special_tokens = True
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("kind", CUTTINGS)
def test_ids_are_equal(kind):
    tokenizer = learned(CUTTINGS[kind])
    if kind == "llama3":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("the user", special=False)])
    fast = proved(tokenizer, ChatTemplate(CHATML), [])
    assert fast is not None
    for text in (*NAUGHTY, *drawn(500), " " * 110_000):
        assert fast.ids(text) == plainly(tokenizer, text)


@pytest.mark.parametrize("template", [CHATML, PLAIN, CHATML.replace("'<|im_end|>' + '\\n'", "'\\n\\n'")])
def test_what_is_learned_is_equal(template):
    tokenizer = learned(CUTTINGS["digits"])
    chosen = ChatTemplate(template, {"eos_token": "<|endoftext|>"})
    fast = proved(tokenizer, chosen, [chat("a", "b")])
    assert fast is not None
    texts = [*drawn(100), *(text for text in NAUGHTY if text)]
    for at in range(0, len(texts) - 4, 4):
        for example in (chat(*texts[at : at + 4]), Example(rid=0, kind="text", text=texts[at])):
            for learn_prompts in (False, True):
                asked = (chosen, example, learn_prompts, 0)
                assert fast.example(*asked) == encode_example(tokenizer, *asked)


def test_a_tokenizer_that_cannot_be_proved_is_left_alone():
    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert built(words) is None
    blank = learned(pre_tokenizers.ByteLevel(add_prefix_space=True))
    assert built(blank) is None
    shuffled = json.loads(learned(BYTES).to_str())
    merges = shuffled["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]
    assert built(Tokenizer.from_str(json.dumps(shuffled))) is None
    # The two pattern engines read "(?m)" differently: one lets a dot be a newline.
    unlike = pre_tokenizers.Split(Regex(r"(?m)\S.\S|."), "isolated")
    dots = learned(pre_tokenizers.Sequence([unlike, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))
    assert built(dots) is not None
    assert proved(dots, ChatTemplate(CHATML), []) is None


def test_one_row_that_differs_is_enough(monkeypatch):
    tokenizer = learned(BYTES)
    rows = [chat("a", "b"), chat("the user", "talks ☂")]
    assert proved(tokenizer, ChatTemplate(CHATML), rows) is not None
    monkeypatch.setattr(accelerated, "HARD_TEXTS", ())
    monkeypatch.setattr(accelerated, "_code_points", tuple)
    monkeypatch.setattr(accelerated, "pattern_of", lambda _facts: r"☂|[^☂]+")
    assert proved(tokenizer, ChatTemplate(CHATML), rows[:1]) is not None
    assert proved(tokenizer, ChatTemplate(CHATML), rows) is None
