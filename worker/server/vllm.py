"""vLLM as the engine of the models that it holds: its OpenAI-compatible HTTP, asked with ids and answered with ids.

Adapters are loaded and unloaded at run time by /v1/load_lora_adapter and /v1/unload_lora_adapter. Rendering, tokens
and text are ours, so that a model says the same through either engine. Sources: vLLM's pages on LoRA adapters and on
its OpenAI-compatible server; the fields of its completions that are not OpenAI's are return_token_ids,
return_tokens_as_token_ids, stop_token_ids, top_k, min_p, repetition_penalty, structured_outputs and cache_salt.
"""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import orjson

from app.contracts.generation import LEAST_LOGPROB, AnswerFormat, GenerationRequest, Likely, TokenEvent, TokenLogprob
from app.contracts.recipe import ModelFiles
from worker.engine.adapters import BEYOND
from worker.engine.detokenise import TextOut
from worker.engine.errors import BadData
from worker.engine.generate import fit_prompt
from worker.engine.vocabulary import vocabulary_of
from worker.server.reader import Reader, read
from worker.server.residents import digest

log = logging.getLogger(__name__)
MOST_ADAPTERS = 16
_TIMEOUT = httpx.Timeout(120, connect=3)
_SETTINGS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"]


class Away(Exception):
    """vLLM does not answer, or not as it should; the text is a sentence."""


class Unfit(Exception):
    """A model that vLLM cannot hold, so that our own engine answers for it; the text says why."""


class Vllm:
    """A running vLLM server with one base model, and the adapters of that model that were loaded into it."""

    def __init__(
        self, address: str, key: str = "", *, is_needed: bool = True, most_adapters: int = MOST_ADAPTERS
    ) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.address = address.rstrip("/").removesuffix("/v1")
        self.is_needed = is_needed  # otherwise our own engine answers while it is away
        self._http = httpx.AsyncClient(base_url=self.address, headers=headers, timeout=_TIMEOUT, trust_env=False)
        self._most, self._loading = most_adapters, asyncio.Lock()
        self._adapters: OrderedDict[str, str] = OrderedDict()  # vLLM's name → our reference; least recently used first

    async def held(self) -> tuple[str, Path, set[str]]:
        """The id and the folder of the model that vLLM was started with, and the ids of all that it holds now. Raises
        Away."""
        try:
            answer = await self._http.get("/v1/models", timeout=5)
            answer.raise_for_status()
            listed = answer.json()["data"]
            base = next(one for one in listed if not one.get("parent"))
            return base["id"], Path(base.get("root") or base["id"]).resolve(), {one["id"] for one in listed}
        except (httpx.HTTPError, StopIteration, KeyError, TypeError, ValueError) as error:
            log.warning("vLLM: %s", error)
            raise Away(
                f"The vLLM server at {self.address} does not answer. Start it, or choose our own engine."
            ) from error

    async def name_of(self, files: ModelFiles, ref: str) -> str:
        """What vLLM calls this model, its adapter loaded on first use. Raises Unfit and Away."""
        name, folder, held = await self.held()
        if Path(files.base_dir).resolve() != folder:
            raise Unfit(f"vLLM was started with {folder}")
        if not files.overlays:
            return name
        adapter = _only_adapter(files)
        name = f"gptb-{(await asyncio.to_thread(digest, files))[:24]}"
        async with self._loading:
            # One that was restarted has forgotten what had been loaded into it.
            if name not in self._adapters or name not in held:
                await self._load(name, adapter)
            self._adapters[name] = ref
            self._adapters.move_to_end(name)
            while len(self._adapters) > self._most:
                await self._forget(next(iter(self._adapters)))
        return name

    async def _load(self, name: str, folder: Path) -> None:
        order = {"lora_name": name, "lora_path": str(folder.resolve())}
        answer = await self._posted("/v1/load_lora_adapter", order)
        if answer.status_code == 404 and "lora_name" not in answer.text:
            raise Unfit("vLLM was started without VLLM_ALLOW_RUNTIME_LORA_UPDATING=True")
        # Left over from before our own restart: the name tells the weights, so it is the right one.
        if answer.status_code != 200 and "already" not in answer.text:
            raise Unfit(f"vLLM refused the adapter: {_message(answer)}")

    async def _forget(self, name: str) -> None:
        self._adapters.pop(name, None)
        answer = await self._posted("/v1/unload_lora_adapter", {"lora_name": name})
        if answer.status_code not in (200, 404):
            log.warning("vLLM kept the adapter %s: %s", name, _message(answer))

    async def unload(self, ref: str) -> int:
        """Forget the adapters of a model that was deleted; how many went. Raises Away."""
        async with self._loading:
            names = [name for name, one in self._adapters.items() if one == ref]
            for name in names:
                await self._forget(name)
        return len(names)

    async def _posted(self, path: str, order: dict[str, Any]) -> httpx.Response:
        try:
            return await self._http.post(path, json=order)
        except httpx.TransportError as error:
            raise Away(f"The vLLM server at {self.address} does not answer.") from error

    async def generate(self, name: str, request: GenerationRequest) -> AsyncGenerator[TokenEvent]:
        """Events of one answer of the model that vLLM calls `name`. Closing it cancels the answer there.

        Raises BadData for a prompt that is too long, TemplateFault, and Away.
        """
        reader = await asyncio.to_thread(_reader, request.files.model_dump_json())
        prompt, _dropped = await asyncio.to_thread(fit_prompt, reader, request)
        answer = _Answer(reader, request, prompt)
        try:
            async with self._http.stream("POST", "/v1/completions", json=answer.order(name)) as response:
                if response.status_code != 200:
                    await response.aread()
                    if response.status_code < 500:
                        raise BadData(f"vLLM refused: {_message(response)}")
                    raise Away(f"vLLM failed ({response.status_code}): {_message(response)}")
                async for payload in _payloads(response):
                    event = answer.take(payload)
                    if event is not None:
                        yield event
                        if event.finish_reason:
                            return
        except httpx.TransportError as error:
            log.warning("vLLM: %s", error)
        raise Away("vLLM broke off in the middle of the answer. Ask again.")

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()


class _Answer:
    """One answer on its way: what is asked, and its ids as events."""

    def __init__(self, reader: Reader, request: GenerationRequest, prompt: list[int]) -> None:
        self._reader, self._request, self._prompt = reader, request, prompt
        self._limit = min(request.sampling.max_tokens, reader.context_length - len(prompt))
        self._out = TextOut(reader.tokenizer, request.sampling.stop)
        self._said = 0
        self._asked_at = time.monotonic()
        self._first_token_s: float | None = None

    def order(self, name: str) -> dict[str, Any]:
        """The body of vLLM's /v1/completions. Every setting is said: the server has defaults of the model's own."""
        sampling = self._request.sampling
        found = {"model": name, "prompt": self._prompt, "max_tokens": self._limit, "stream": True}
        found |= {setting: getattr(sampling, setting) for setting in _SETTINGS}
        found |= {"return_token_ids": True, "skip_special_tokens": False}
        found["stop_token_ids"] = sorted(self._reader.end_ids)
        # What one workspace has had read is never found again by another one's timing.
        found["cache_salt"] = hashlib.sha256(self._request.workspace_id.encode()).hexdigest()
        if sampling.seed is not None:
            found["seed"] = sampling.seed
        if sampling.logit_bias:
            found["logit_bias"] = {str(number): bias for number, bias in sampling.logit_bias.items()}
        if sampling.top_logprobs is not None:
            found |= {"logprobs": sampling.top_logprobs, "return_tokens_as_token_ids": True}
        if sampling.format is not None:
            found["structured_outputs"] = _structured(sampling.format)
        return found

    def take(self, payload: dict[str, Any]) -> TokenEvent | None:
        """What a chunk of the stream says."""
        if payload.get("error"):
            raise Away(f"vLLM broke off: {payload['error']}")
        choices = payload.get("choices") or []
        if not choices:
            return None
        choice, text, told = choices[0], "", self._logprobs(choices[0].get("logprobs") or {})
        for place, token in enumerate(choice.get("token_ids") or []):
            if self._first_token_s is None:
                self._first_token_s = time.monotonic() - self._asked_at
            if token in self._reader.end_ids:
                return self._ended("stop", text + self._out.close(), told[:place])
            self._said += 1
            text += self._out.push(token)
            if self._out.is_stopped:
                return self._ended("stop", text, told[:place])
        if reason := choice.get("finish_reason"):
            return self._ended("length" if reason == "length" else "stop", text + self._out.close(), told)
        return TokenEvent(text=text, logprobs=told or None)

    def _ended(self, reason: str, text: str, told: list[TokenLogprob]) -> TokenEvent:
        return TokenEvent(
            text=text, finish_reason=reason, logprobs=told or None, prompt_tokens=len(self._prompt),
            completion_tokens=self._said, first_token_s=self._first_token_s, queue_s=0.0,
            total_s=time.monotonic() - self._asked_at,
        )  # fmt: skip

    def _logprobs(self, found: dict[str, Any]) -> list[TokenLogprob]:
        tops = found.get("top_logprobs") or []
        chosen = zip(found.get("tokens") or [], found.get("token_logprobs") or [], strict=True)
        return [
            TokenLogprob(**self._likely(token, logprob), top=self._top(tops[place] if place < len(tops) else {}))
            for place, (token, logprob) in enumerate(chosen)
        ]

    def _top(self, found: dict[str, float] | None) -> list[Likely]:
        """The likeliest ones; vLLM adds the chosen token, which need not be among them."""
        best = sorted((found or {}).items(), key=lambda one: -one[1])[: self._request.sampling.top_logprobs]
        return [Likely(**self._likely(token, logprob)) for token, logprob in best]

    def _likely(self, token: str, logprob: float) -> dict[str, Any]:
        number = int(token.removeprefix("token_id:"))
        found = vocabulary_of(self._reader.tokenizer).bytes_of(number)
        text = found.decode(errors="replace")
        return {"id": number, "token": text, "bytes": list(found), "logprob": max(logprob, LEAST_LOGPROB)}


def _only_adapter(files: ModelFiles) -> Path:
    """The folder of a model's one adapter. Raises Unfit for whatever vLLM does not hold beside its base."""
    if len(files.overlays) != 1 or files.overlays[0].kind != "lora":
        raise Unfit("more than one adapter was trained on this base")
    folder = Path(files.overlays[0].dir)
    config = orjson.loads((folder / "adapter_config.json").read_bytes())
    if config.get("use_dora") or config.get("bias", "none") != "none" or any(config.get(name) for name in BEYOND):
        raise Unfit("the adapter is more than two narrow matrices a layer")
    return folder


@lru_cache(maxsize=32)
def _reader(files: str) -> Reader:
    return read(ModelFiles.model_validate_json(files))


def _structured(form: AnswerFormat) -> dict[str, Any]:
    if form.kind == "choice":
        return {"choice": form.choices}
    if form.kind == "regex":
        return {"regex": form.regex}
    return {"json": form.json_schema} if form.kind == "json_schema" else {"json_object": True}


def _message(answer: httpx.Response) -> str:
    """What vLLM says beside a bad status."""
    try:
        found = answer.json()
        found = found.get("error", found)
        return str(found.get("message", found) if isinstance(found, dict) else found)[:300]
    except (ValueError, AttributeError):
        return answer.text[:300]


async def _payloads(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data:") and not line.endswith("[DONE]"):
            yield orjson.loads(line[5:])
