"""The calls that Open WebUI documents and its source makes: connection test, streamed chat, titles, its headers."""

import json

import httpx
from said import KEY, MODEL, URL, call, holds

headers = {"Authorization": f"Bearer {KEY}", "X-OpenWebUI-User-Name": "Ana", "X-OpenWebUI-User-Email": "a@example.org"}
http = httpx.Client(headers=headers, timeout=120)

with call("connection test"):
    listed = http.get(f"{URL}/models").json()
    holds("error" not in listed and all(one["id"] and one["name"] for one in listed["data"]), "ids and names")
with call("chat, streamed"):
    asked = {
        "model": MODEL,
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "metadata": {"chat_id": "x"},
        "max_tokens": 8,
    }
    with http.stream("POST", f"{URL}/chat/completions", json=asked) as answer:
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    holds(lines[-1] == "[DONE]" and json.loads(lines[-2])["usage"]["total_tokens"], "counts, then the end")
with call("title of a conversation"):
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "A title, please."}], "max_completion_tokens": 8}
    holds(http.post(f"{URL}/chat/completions", json=asked | {"stream": False}).status_code == 200, "an answer")
