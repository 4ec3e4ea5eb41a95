"""What each client's program says of its calls: one line of JSON a call. Runs in the client's own environment."""

import json
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

URL = os.environ["GPT_BUILDER_URL"]
KEY = os.environ["GPT_BUILDER_KEY"]
TRAIN_KEY = os.environ["GPT_BUILDER_TRAIN_KEY"]
MODEL = os.environ["GPT_BUILDER_MODEL"]
TOKENIZER = os.environ["GPT_BUILDER_TOKENIZER"]


@contextmanager
def call(name: str) -> Iterator[None]:
    """Run one call and say whether it worked; the others go on."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        told = {"call": name, "ok": False, "note": f"{type(error).__name__}: {error}"[:300]}
    else:
        told = {"call": name, "ok": True, "note": ""}
    print("SAID " + json.dumps(told), flush=True)


def holds(condition: object, what: str) -> None:
    """Raise AssertionError with `what` unless the condition holds."""
    if not condition:
        raise AssertionError(what)
