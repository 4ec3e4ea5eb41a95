"""A real Open WebUI whose only connection is the API: models, chats as its page makes them, stopping, titles, tags."""

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from recorder import recorder
from said import KEY, MODEL, call, holds

READY_WITHIN_S, DONE_WITHIN_S = 600, 120
ASK = [{"role": "user", "content": "Where is my card?"}]


def until(condition: Callable[[], Any], what: str, within_s: float = DONE_WITHIN_S) -> Any:
    """Wait for a condition and give what it gives."""
    give_up_at = time.monotonic() + within_s
    while not (found := condition()):
        holds(time.monotonic() < give_up_at, f"{what} within {within_s:.0f} s")
        time.sleep(0.2)
    return found


@contextmanager
def open_webui(base_url: str) -> Iterator[httpx.Client]:
    """Its server, offline and without accounts, and a client that is signed in."""
    with tempfile.TemporaryDirectory(prefix="gptb-owui-") as folder:
        port = 1024 + uuid.uuid4().int % 60_000
        settings = {
            "DATA_DIR": folder, "WEBUI_SECRET_KEY": "only for this", "WEBUI_AUTH": "False", "OFFLINE_MODE": "True",
            "USE_SLIM_DOCKER": "true", "ENABLE_OLLAMA_API": "False", "OPENAI_API_BASE_URLS": base_url,
            "OPENAI_API_KEYS": KEY, "ENABLE_VERSION_UPDATE_CHECK": "False", "RAG_EMBEDDING_ENGINE": "openai",
            "GLOBAL_LOG_LEVEL": "WARNING",
        }  # fmt: skip
        command = [
            str(Path(sys.executable).with_name("open-webui")),
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        with (Path(folder) / "log").open("w") as log:
            child = subprocess.Popen(command, env={**os.environ, **settings}, cwd=folder, stdout=log, stderr=log)
        http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)

        def is_up() -> bool:
            holds(child.poll() is None, "Open WebUI runs")
            try:
                return http.get("/health", timeout=2).status_code == 200
            except httpx.TransportError:
                return False

        try:
            until(is_up, "Open WebUI answers", READY_WITHIN_S)
            token = http.post("/api/v1/auths/signin", json={"email": "", "password": ""}).json()["token"]
            http.headers["authorization"] = f"Bearer {token}"
            yield http
        except BaseException:
            sys.stderr.write((Path(folder) / "log").read_text()[-6000:])
            raise
        finally:
            child.terminate()
            child.wait(30)


def chat_of_its_page(http: httpx.Client, **more: Any) -> dict[str, Any]:
    """Ask as its page does: a chat of its own, the answer made in the background."""
    message = {"id": str(uuid.uuid4()), "role": "user", "content": ASK[0]["content"], "models": [MODEL]}
    order = {
        "model": MODEL, "messages": ASK, "stream": True, "params": {"max_tokens": 24}, "parent_id": None,
        "id": str(uuid.uuid4()), "session_id": "a-page", "user_message": message, **more,
    }  # fmt: skip
    found: dict[str, Any] = http.post("/api/chat/completions", json=order).json()
    return found


with recorder() as between, open_webui(between.url) as http:
    with call("connection test"):
        told = http.post("/openai/verify", json={"url": between.url, "key": KEY})
        holds(told.status_code == 200 and told.json()["data"], told.text[:200])
    with call("models"):
        listed = [one["id"] for one in http.get("/api/models").json()["data"]]
        holds(MODEL in listed and f"{MODEL}:step-120" in listed, f"the model and its checkpoint, not {listed}")
    with call("chat, whole"):
        answer = http.post("/api/chat/completions", json={"model": MODEL, "messages": ASK, "max_tokens": 8})
        whole = answer.json()["choices"][0]["message"]["content"]
        holds(answer.status_code == 200 and isinstance(whole, str), answer.text[:200])
    with call("chat, streamed"):
        asked = {"model": MODEL, "messages": ASK, "max_tokens": 8, "temperature": 0, "stream": True}
        with http.stream("POST", "/api/chat/completions", json=asked) as stream:
            lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: ")]
        said = [json.loads(line) for line in lines if line != "[DONE]"]
        text = "".join(one["choices"][0]["delta"].get("content") or "" for one in said if one.get("choices"))
        holds(lines[-1] == "[DONE]" and text, f"words and an end, not {lines[-3:]}")
    with call("chat, stopped midway"):
        between.holds.set()
        with http.stream("POST", "/api/chat/completions", json=asked | {"max_tokens": 64}) as stream:
            next(stream.iter_lines())
        until(lambda: between.asked[-1].is_left, "it hangs up on the API")
        between.holds.clear()
    with call("chat of its page, with title and tags"):
        begun = chat_of_its_page(http, background_tasks={"title_generation": True, "tags_generation": True})
        chat_id = begun.get("chat_id")
        holds(chat_id, f"a chat, not {begun}")

        def answered() -> Any:
            chat = http.get(f"/api/v1/chats/{chat_id}").json()["chat"]
            messages = chat["history"]["messages"].values()
            return [one for one in messages if one["role"] == "assistant" and one.get("done")]

        answers = until(answered, "the answer is kept in the chat")
        holds(not answers[0].get("error") and answers[0]["content"], f"an answer, not {answers[0].get('error')}")
    with call("chat of its page, stopped"):
        between.holds.set()
        begun = chat_of_its_page(http)
        task = (begun.get("task_ids") or [begun.get("task_id")])[0]
        holds(task, f"a task, not {begun}")
        until(lambda: between.asked[-1].body.get("stream") and between.asked[-1].status == 200, "the answer has begun")
        http.post(f"/api/tasks/stop/{task}")
        until(lambda: between.asked[-1].is_left, "it hangs up on the API")
        between.holds.clear()
    for name in ("title", "tags", "follow_up"):
        with call(f"{name.replace('_', ' ')} of a conversation"):
            order = {"model": MODEL, "messages": [*ASK, {"role": "assistant", "content": "On its way."}], "chat_id": ""}
            made = http.post(f"/api/v1/tasks/{name}/completions", json=order)
            holds(made.status_code == 200 and made.json()["choices"], made.text[:200])
    with call("nothing of what it asks is refused"):
        refused = [one for one in between.asked if one.status >= 400]
        holds(not refused, f"{[(one.line, one.status, sorted(one.body)) for one in refused][:3]}")
    for line in sorted({f"{one.line} {one.status} {sorted(one.body)}" for one in between.asked}):
        print(line)
