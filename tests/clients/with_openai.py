"""OpenAI's own Python client: models, chat in every way, completions, embeddings, files, fine-tuning."""

import asyncio
import json
from typing import Literal

import openai
from pydantic import BaseModel
from said import KEY, MODEL, TRAIN_KEY, URL, call, holds

ASK = [{"role": "user", "content": "Where is my card?"}]
client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
trainer = openai.OpenAI(base_url=URL, api_key=TRAIN_KEY, max_retries=0)
greedy = {"model": MODEL, "messages": ASK, "max_tokens": 8, "temperature": 0}


class Way(BaseModel):
    """What the structured answer must be."""

    way: Literal["on", "off"]


with call("models"):
    holds(MODEL in [one.id for one in client.models.list()], "the model is listed")
    holds(client.models.retrieve(f"{MODEL}:step-120").id.endswith(":step-120"), "a checkpoint is found")
with call("chat"):
    whole = client.chat.completions.create(**greedy)
    holds(whole.choices[0].message.content and whole.usage.total_tokens, "an answer with its counts")
with call("chat, streamed"):
    pieces = client.chat.completions.create(**greedy, stream=True, stream_options={"include_usage": True})
    pieces = list(pieces)
    text = "".join(one.choices[0].delta.content or "" for one in pieces if one.choices)
    holds(text == whole.choices[0].message.content, "the same text in pieces")
    holds(pieces[-1].usage == whole.usage, "the same counts")
with call("chat, stream helper"), client.chat.completions.stream(**greedy | {"stop": [text[3]]}) as helped:
    holds(helped.get_final_completion().choices[0].finish_reason == "stop", "it ends at the stop text")
with call("chat, structured parse"):
    parsed = client.chat.completions.parse(model=MODEL, messages=ASK, response_format=Way, max_tokens=40, seed=1)
    holds(parsed.choices[0].message.parsed.way in ("on", "off"), "a value of the class")
with call("chat, asynchronous"):

    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=URL, api_key=KEY) as remote:
            answers = await asyncio.gather(*[remote.chat.completions.create(**greedy) for _ in range(3)])
            stream = await remote.chat.completions.create(**greedy, stream=True)
            streamed = "".join([one.choices[0].delta.content or "" async for one in stream])
            return [one.choices[0].message.content for one in answers] + [streamed]

    holds(set(asyncio.run(ask())) == {text}, "four times the same")
with call("completions, echo and logprobs"):
    told = client.completions.create(model=MODEL, prompt="Where is my", max_tokens=0, echo=True, logprobs=1)
    holds(told.choices[0].text == "Where is my", "the prompt comes back")
    holds(told.choices[0].logprobs.token_logprobs[0] is None, "the first token has no probability")
with call("embeddings"):
    vector = client.embeddings.create(model=MODEL, input="Where is my card?").data[0].embedding
    holds(abs(sum(number * number for number in vector) - 1) < 1e-3, "length one")
with call("errors"):
    try:
        client.chat.completions.create(**greedy | {"model": "nothing-run-1"})
    except openai.NotFoundError as error:
        holds(error.code == "model_not_found" and error.request_id, "a code and the request's number")
with call("files"):
    rows = [
        {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"{n}."}]}
        for n in range(60)
    ]
    content = "\n".join(json.dumps(row) for row in rows).encode()
    file = trainer.files.create(file=("numbers.jsonl", content), purpose="fine-tune")
    holds(trainer.files.wait_for_processing(file.id, poll_interval=0.5).status == "processed", "it is read")
    holds(trainer.files.content(file.id).read() == content, "the same bytes")
    holds(file.id in [one.id for one in trainer.files.list()], "it is listed")
with call("fine-tuning"):
    job = trainer.fine_tuning.jobs.create(
        model="starter", training_file=file.id, suffix="by the client", hyperparameters={"n_epochs": 1}
    )
    holds(trainer.fine_tuning.jobs.retrieve(job.id).training_file == file.id, "it trains on the file")
    holds(trainer.fine_tuning.jobs.list_events(job.id).data, "its events")
    holds(trainer.fine_tuning.jobs.pause(job.id).status == "paused", "pause")
    holds(trainer.fine_tuning.jobs.resume(job.id).status == "queued", "resume")
    holds(trainer.fine_tuning.jobs.cancel(job.id).status == "cancelled", "cancel")
    done = next(one for one in trainer.fine_tuning.jobs.list(limit=1) if one.status == "succeeded")
    kept = trainer.fine_tuning.jobs.checkpoints.list(done.id).data
    holds(kept[0].fine_tuned_model_checkpoint == f"{MODEL}:step-120", "checkpoints")
with call("files, delete"):
    holds(trainer.files.delete(file.id).deleted, "deleted")
