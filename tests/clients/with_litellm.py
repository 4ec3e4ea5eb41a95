"""LiteLLM against an OpenAI-compatible address: completion, stream, asynchronous, text completion, embedding."""

import asyncio

import litellm
from said import KEY, MODEL, URL, call, holds

about = {"api_base": URL, "api_key": KEY, "num_retries": 0}
ask = {"messages": [{"role": "user", "content": "Where is my card?"}], "max_tokens": 8, "temperature": 0}

with call("completion"):
    answer = litellm.completion(model=f"openai/{MODEL}", **about, **ask)
    text = answer.choices[0].message.content
    holds(text and answer.usage.total_tokens, "an answer with its counts")
with call("completion, streamed"):
    pieces = litellm.completion(model=f"openai/{MODEL}", **about, **ask, stream=True)
    holds("".join(piece.choices[0].delta.content or "" for piece in pieces) == text, "the same in pieces")
with call("completion, asynchronous"):
    again = asyncio.run(litellm.acompletion(model=f"openai/{MODEL}", **about, **ask))
    holds(again.choices[0].message.content == text, "the same")
with call("text completion"):
    told = litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt="Where is", max_tokens=4, **about)
    holds(isinstance(told.choices[0].text, str), "a text")
with call("embedding"):
    vectors = litellm.embedding(model=f"openai/{MODEL}", input=["Where is my card?"], **about)
    holds(len(vectors.data[0]["embedding"]) > 8, "a vector")
