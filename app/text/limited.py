"""Chat templates from outside, rendered in a limited process of their own: what wastes time or memory ends there.

A template may behave for the sentences that it was tried with and waste everything for others, so the model server,
which serves everybody, renders none that is not ours itself. `python -m app.text.limited` is the process.
"""

import json
import os
import selectors
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from app.text.template import CHATML, PLAIN, ChatTemplate, TemplateFault

CPU_S, MEMORY_BYTES, PATIENCE_S = 1, 512 * 2**20, 15.0
_WASTE = "The chat template uses far too much time or memory, so it was stopped. Choose another base model."


class _Process:
    """The process of one template, started at the first use and again after it was stopped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Its answer. Raises TemplateFault when it had to be stopped."""
        with self._lock:
            child = self._child
            if child is None or child.poll() is not None:
                child = self._child = _start()
                weakref.finalize(self, _stop, child)
            answer = _exchange(child, json.dumps(order).encode() + b"\n")
            if answer is None:
                _stop(child)
                raise TemplateFault(_WASTE)
            found: dict[str, Any] = json.loads(answer)
            return found


@dataclass(frozen=True, eq=False)
class LimitedTemplate(ChatTemplate):
    """As ChatTemplate, but rendered elsewhere, with at most two seconds of processor and 512 MB for each text."""

    _process: _Process = field(default_factory=_Process)

    def _render(self, turns: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        order = {"source": self.source, "special_tokens": self.special_tokens, "turns": turns}
        answer = self._process.ask(order | {"add_generation_prompt": add_generation_prompt})
        if "fault" in answer:
            raise TemplateFault(str(answer["fault"]))
        return str(answer["text"])


def limited(template: ChatTemplate) -> ChatTemplate:
    """The template itself where it is one of ours, else one that is rendered in a limited process."""
    if template.source in (CHATML, PLAIN):
        return template
    return LimitedTemplate(template.source, template.special_tokens)


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "app.text.limited"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PYTHONPATH": ":".join(p for p in [os.getcwd(), *sys.path] if p), "PATH": ""},
    )


def _exchange(child: subprocess.Popen[bytes], order: bytes) -> bytes | None:
    """One line there, one line back; None when the process died or took too long."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(order)
        child.stdin.flush()
    except OSError:
        return None
    got = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while not got.endswith(b"\n"):
            if not selector.select(PATIENCE_S):
                return None
            piece = os.read(child.stdout.fileno(), 2**20)
            if not piece:
                return None
            got += piece
    return got


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


@lru_cache(maxsize=4)
def _template(source: str, special_tokens: str) -> ChatTemplate:
    return ChatTemplate(source, json.loads(special_tokens))


def _answer(order: dict[str, Any]) -> dict[str, str]:
    template = _template(order["source"], json.dumps(order["special_tokens"]))
    try:
        return {"text": template._render(order["turns"], order["add_generation_prompt"])}
    except TemplateFault as fault:
        return {"fault": str(fault)[:500]}
    except (MemoryError, RecursionError, OverflowError):
        return {"fault": _WASTE}


def _main() -> None:
    import resource

    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin.buffer:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + CPU_S + 1, hard))
        sys.stdout.write(json.dumps(_answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
