"""Tries a chat template from outside in a limited child: two seconds of processor, 512 MB, one million characters.

`python -m app.text.check` is the child; web and import call `check_template`.
"""

import json
import subprocess
import sys
from collections.abc import Sequence

from app.contracts.conversation import Message
from app.text.template import ChatTemplate, TemplateFault

CPU_S, MEMORY_BYTES, OUTPUT_CHARACTERS = 2, 512 * 2**20, 1_000_000
_TRIAL = (
    Message(role="user", content="How do I reset my password?"),
    Message(role="assistant", content="Open Settings, then choose Security."),
    Message(role="user", content="Thanks."),
)


def check_template(
    source: str, special_tokens: dict[str, str] | None = None, messages: Sequence[Message] = _TRIAL
) -> str:
    """Render `messages` in the child and return the text. Raises TemplateFault for code, waste and errors alike."""
    order = json.dumps(
        {
            "source": source,
            "special_tokens": special_tokens or {},
            "messages": [m.model_dump(include={"role", "content"}) for m in messages],
        }
    )
    try:
        child = subprocess.run(
            [sys.executable, "-m", "app.text.check"],
            input=order.encode(),
            capture_output=True,
            timeout=10 * CPU_S,
            check=False,
            env={"PYTHONPATH": ":".join(p for p in sys.path if p), "PATH": ""},
        )
    except subprocess.TimeoutExpired as error:
        raise TemplateFault("The chat template does not come to an end.") from error
    if child.returncode == 0:
        return str(json.loads(child.stdout)["text"])
    if child.returncode == 3:
        raise TemplateFault(str(json.loads(child.stdout)["fault"]))
    raise TemplateFault("The chat template uses far too much time or memory, so it was stopped.")


def _limit() -> None:
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _main() -> int:
    _limit()
    order = json.loads(sys.stdin.buffer.read())
    messages = [Message(**m) for m in order["messages"]]
    try:
        text = ChatTemplate(order["source"], order["special_tokens"]).text(messages, add_generation_prompt=True)
    except TemplateFault as fault:
        sys.stdout.write(json.dumps({"fault": str(fault)[:500]}))
        return 3
    if len(text) > OUTPUT_CHARACTERS:
        sys.stdout.write(
            json.dumps({"fault": "The chat template writes over a million characters for three sentences."})
        )
        return 3
    sys.stdout.write(json.dumps({"text": text}))
    return 0


if __name__ == "__main__":
    raise SystemExit(_main())
