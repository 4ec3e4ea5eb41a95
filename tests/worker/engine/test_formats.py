"""Answers in a form, with tokenizers of our own: whatever a model of random weights would say, the form is kept."""

import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from app.contracts.conversation import Message
from app.contracts.generation import AnswerFormat, GenerationRequest, Sampling, TokenEvent
from app.contracts.recipe import ModelFiles
from tests.worker.tiny import make_model
from worker.engine import tokenizer as own
from worker.engine.errors import BadData
from worker.engine.formats import guide
from worker.engine.generate import Generation, Loaded, load
from worker.engine.slots import Slots
from worker.engine.vocabulary import Vocabulary

TEXTS = [
    'How do I reset {"name": "my password", "age": 12}?',
    "Wo ist die Straße? Grüße, 東京 [true, null]",
    "abcdefghijklmnopqrstuvwxyz-34567890",
] * 9
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["mood", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["bpe", "characters"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    made = own.train_bpe(TEXTS, 400) if request.param == "bpe" else own.train_characters(TEXTS)
    folder = tmp_path_factory.mktemp(request.param)
    return load(ModelFiles(base_dir=str(make_model(folder, context_length=256, tokenizer=made))))


def asked(loaded: Loaded, form: AnswerFormat | None, seed: int = 1, **sampling: object) -> Generation:
    return Generation(
        loaded,
        GenerationRequest(
            model_ref="m",
            workspace_id="w",
            files=ModelFiles(base_dir="unused"),
            messages=[Message(role="user", content="How?")],
            sampling=Sampling(**{"temperature": 1.5, "seed": seed, "max_tokens": 150, "format": form, **sampling}),
        ),
    )


def said(generation: Generation) -> tuple[str, str | None]:
    events: list[TokenEvent] = []
    while not generation.is_done:
        if event := generation.step():
            events.append(event)
    return "".join(event.text for event in events), events[-1].finish_reason


def test_a_schema_a_choice_and_an_expression_are_kept(loaded: Loaded) -> None:
    for seed in range(3):
        text, reason = said(asked(loaded, AnswerFormat(kind="json_schema", json_schema=SCHEMA), seed))
        found = json.loads(text)
        assert reason == "stop"
        assert set(found) == {"mood", "count"}
        assert found["mood"] in {"good", "bad"}
        assert 0 <= found["count"] <= 99
        assert said(asked(loaded, AnswerFormat(kind="choice", choices=["reset", "do I"]), seed))[0] in {"reset", "do I"}
        text, _ = said(asked(loaded, AnswerFormat(kind="regex", regex=r"[a-d]{3}-(ß|ü)?[0-2]"), seed))
        assert re.fullmatch(r"[a-d]{3}-(ß|ü)?[0-2]", text)


def test_any_object_is_json_unless_the_limit_cut_it(loaded: Loaded) -> None:
    text, reason = said(asked(loaded, AnswerFormat(kind="json_object"), temperature=0.7, logit_bias=_closing(loaded)))
    assert reason == "stop"
    assert isinstance(json.loads(text), dict)


def _closing(loaded: Loaded) -> dict[int, float]:
    """A push towards short objects: a model of random weights would never close one."""
    return {loaded.tokenizer.token_to_id(text): 30.0 for text in '}"'}


def test_others_in_the_batch_are_left_alone(loaded: Loaded) -> None:
    free = said(asked(loaded, None, temperature=0, max_tokens=20))[0]
    slots = Slots(loaded)
    plain = asked(loaded, None, temperature=0, max_tokens=20)
    formed = asked(loaded, AnswerFormat(kind="choice", choices=["do I reset"]))
    impossible = asked(loaded, AnswerFormat(kind="regex", regex="☃☃"))
    texts: dict[Generation, str] = {plain: "", formed: "", impossible: ""}
    ends: dict[Generation, TokenEvent] = {}
    for answer in texts:
        slots.add(answer)
    while slots.answers:
        for answer, event in slots.step():
            texts[answer] += event.text
            ends[answer] = event
    assert texts[plain] == free
    assert texts[formed] == "do I reset"
    if not Vocabulary(loaded.tokenizer).tokens.count(b"\xe2"):  # bytes can write a snowman, these characters cannot
        assert (ends[impossible].error_kind, ends[impossible].finish_reason) == ("refused", "error")
        assert "cannot write" in str(ends[impossible].error)


@pytest.mark.parametrize(
    "form",
    [
        AnswerFormat(kind="regex", regex="(a"),
        AnswerFormat(kind="regex", regex=r"(a)\1"),
        AnswerFormat(kind="json_schema", json_schema={"type": "nonsense"}),
        AnswerFormat(kind="json_schema", json_schema={"$ref": "https://example.org/other.json"}),
    ],
)
def test_a_form_that_cannot_be_read_is_refused_in_words(loaded: Loaded, form: AnswerFormat) -> None:
    with pytest.raises(BadData, match="cannot be read"):
        guide(loaded.tokenizer, loaded.end_ids, form)


def test_log_probabilities_carry_the_bytes_of_each_token(loaded: Loaded) -> None:
    generation = asked(loaded, None, temperature=0, max_tokens=12, top_logprobs=3)
    text, told = "", []
    while not generation.is_done:
        if event := generation.step():
            text += event.text
            told += event.logprobs or []
    markers = Vocabulary(loaded.tokenizer).special
    whole = b"".join(bytes(one.bytes) for one in told if one.id not in markers).decode(errors="replace")
    assert whole.rstrip("\ufffd") == text.rstrip("\ufffd")
    assert all(len(one.top) == 3 and one.top[0].id == one.id and one.top[0].logprob == one.logprob for one in told)
    assert all(one.logprob <= 0 for one in told)


def test_bytes_of_every_kind_of_tokenizer(tmp_path: Path) -> None:
    for made in (own.train_bpe(TEXTS, 400), own.train_characters(TEXTS), _sentencepiece_like()):
        vocabulary = Vocabulary(made)
        text = "Wo ist die Straße?"
        ids = made.encode(text, add_special_tokens=False).ids
        assert b"".join(vocabulary.bytes_of(i) for i in ids).decode().strip() == text
    assert vocabulary.bytes_of(10_000) == b""


def _sentencepiece_like() -> Tokenizer:
    """Blanks as "▁", unknown characters as bytes."""
    from tokenizers import decoders, models, normalizers

    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"Woistdera?"]
    made = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made
