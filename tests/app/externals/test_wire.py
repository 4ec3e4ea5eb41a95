"""OpenAI's wire as others speak it: what is read of an answer, what of a refusal, what is asked again without."""

import json

import pytest

from app.contracts.conversation import Message
from app.contracts.generation import Sampling
from app.externals import wire

HI = [Message(role="user", content="Hi")]


def frames(*payloads: object) -> list[bytes]:
    return [b"data: " + (p if isinstance(p, bytes) else json.dumps(p).encode()) for p in payloads]


def piece(text: str | None = None, reason: str | None = None, **more: object) -> dict[str, object]:
    return {"choices": [{"delta": {"content": text} if text else {}, "finish_reason": reason}], **more}


def test_an_answer_with_its_counts_comes_to_its_end() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    told = [b": ping", b"", *frames(piece("Hel"), piece("lo"), piece(reason="length"), usage, b"[DONE]")]
    *said, end = wire.events(told)
    assert "".join(event.text for event in said) == "Hello"
    assert (end.finish_reason, end.prompt_tokens, end.completion_tokens) == ("length", 3, 2)


def test_a_cut_answer_has_no_end() -> None:
    assert [event.finish_reason for event in wire.events(frames(piece("Hel")))] == [None]


def test_an_end_without_done_and_without_counts_is_an_end() -> None:
    *_, end = wire.events(frames(piece("Hi"), piece(reason="stop")))
    assert end.finish_reason == "stop"
    assert end.completion_tokens is None


@pytest.mark.parametrize("broken", [b"<html>", b"[1]", b'{"choices": 4}', b'{"choices": [{"delta": {"content": 7}}]}'])
def test_what_is_not_the_wire_is_broken(broken: bytes) -> None:
    with pytest.raises(wire.Broken):
        list(wire.events(frames(broken)))


def test_an_error_in_the_middle_carries_the_servers_words() -> None:
    with pytest.raises(wire.Failed, match="out of memory"):
        list(wire.events(frames(piece("Hel"), {"error": {"message": "out of\nmemory"}})))


def test_a_line_without_end_is_given_up() -> None:
    with pytest.raises(wire.Broken):
        list(wire.lines(b"x" * 65_536 for _ in range(10_000)))


def test_lines_are_whole_however_they_are_cut() -> None:
    assert list(wire.lines([b"a", b"b\r\nc", b"\n\nd"])) == [b"ab", b"c", b"", b"d"]


@pytest.mark.parametrize(
    ("refusal", "gone", "come"),
    [
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "max_tokens", "max_completion_tokens"),  # noqa: E501
        ("Unknown field stream_options", "stream_options", ""),
        ("'temperature' does not support 0.7. Only the default (1) value is supported.", "temperature", ""),
        ("top_logprobs: logprobs are not supported", "logprobs", ""),
    ],
)  # fmt: skip
def test_a_server_that_names_what_it_does_not_know_is_asked_without(refusal: str, gone: str, come: str) -> None:
    asked = wire.body("m", HI, Sampling(top_logprobs=3))
    again = wire.adapted(asked, refusal)
    assert again is not None
    assert set(asked) - set(again) >= {gone}
    assert set(again) - set(asked) == ({come} if come else set())
    assert wire.adapted(again, refusal) is None, "it is not asked for ever"


def test_other_refusals_are_not_asked_again() -> None:
    assert wire.adapted(wire.body("m", HI, Sampling()), "Your temperature must be below 1.") is None


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (b'{"error": {"message": "No  such\\nkey"}}', "No such key"),
        (b'{"error": "busy"}', "busy"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b"<html>", ""),
        (b"[]", ""),
    ],
)
def test_the_words_of_a_refusal_are_found(refusal: bytes, words: str) -> None:
    assert wire.said_in(refusal) == words
