"""LangChain's OpenAI classes: invoke, stream, batch, structured output, embeddings."""

import os
import subprocess
import sys

from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field
from said import KEY, MODEL, URL, call, holds

about = {"base_url": URL, "api_key": KEY, "model": MODEL, "max_retries": 0}
chat = ChatOpenAI(**about, temperature=0, max_tokens=8, stream_usage=True)


class Way(BaseModel):
    """Whether something is on."""

    is_on: bool = Field(description="on or off")


with call("invoke"):
    answer = chat.invoke("Where is my card?")
    holds(answer.content and answer.usage_metadata["total_tokens"], "an answer with its counts")
with call("stream"):
    pieces = list(chat.stream("Where is my card?"))
    holds("".join(piece.content for piece in pieces) == answer.content, "the same in pieces")
with call("batch"):
    holds(len(chat.batch(["Where is my card?", "Hi"])) == 2, "two answers")
with call("structured output"):
    way = ChatOpenAI(**about, max_tokens=40, seed=1).with_structured_output(Way).invoke("Is it on?")
    holds(isinstance(way.is_on, bool), "a value of the class")
with call("completions"):
    holds(isinstance(OpenAI(**about, max_tokens=4).invoke("Where is"), str), "a text")
with call("embeddings"):
    vectors = OpenAIEmbeddings(base_url=URL, api_key=KEY, model=MODEL, check_embedding_ctx_length=False)
    holds(len(vectors.embed_documents(["Where is my card?", "Hi"])) == 2, "two vectors")
with call("the program on the Deploy page"):
    environment = {**os.environ, "GPT_BUILDER_API_KEY": KEY}
    done = subprocess.run(
        [sys.executable, "-c", os.environ["GPT_BUILDER_PROGRAM"]], env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    holds(done.stdout.strip(), "an answer")
