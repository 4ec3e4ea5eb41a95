"""What `serving_throughput.py` compares with: each peer as a function that makes tokens and returns how many."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

Ids = list[list[int]]


class Transformers:
    """transformers on a model of its own, with its own attention; PEFT around it where adapters are given."""

    def __init__(self, folder: Path, adapters: list[Path]) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.folder, self.adapters = folder, adapters
        self._peft: Any = None

    def _generate(self, model: Any, prompts: Ids, tokens: int, **more: Any) -> Any:
        ids = self.torch.tensor(prompts)
        return model.generate(
            input_ids=ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
            do_sample=False, pad_token_id=0, **more,
        )  # fmt: skip

    def one_after_another(self, prompts: Ids, tokens: int) -> int:
        """`generate` for each."""
        return sum(self._generate(self.plain, [ids], tokens).shape[1] - len(ids) for ids in prompts)

    def static_batch(self, prompts: Ids, tokens: int) -> int:
        """`generate` for all at once; they are equally long, so nothing is padded."""
        return len(prompts) * (self._generate(self.plain, prompts, tokens).shape[1] - len(prompts[0]))

    def first_tokens_s(self, prompts: Ids, clock: Callable[[], float]) -> float:
        """Until the static batch has its first tokens, in seconds."""
        began = clock()
        self._generate(self.plain, prompts, 1)
        return clock() - began

    def continuous(self, prompts: Ids, tokens: int) -> int:
        """transformers' continuous batching."""
        from transformers import ContinuousBatchingConfig, GenerationConfig

        # Without a bound it takes most of the machine's free memory for its cache.
        size = ContinuousBatchingConfig(block_size=32, num_blocks=256, max_batch_tokens=512)
        config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        found = self.plain.generate_batch(prompts, generation_config=config, continuous_batching_config=size)
        said = sum(len(one.generated_tokens) for one in found.values())
        if not said:
            raise RuntimeError("it made no token")
        return said

    @property
    def peft(self) -> Any:
        """The same weights with every adapter loaded by PEFT."""
        if self._peft is None:
            from peft import PeftModel
            from transformers import AutoModelForCausalLM

            base = AutoModelForCausalLM.from_pretrained(self.folder, dtype=self.torch.float32)
            self._peft = PeftModel.from_pretrained(base, self.adapters[0], adapter_name="a0").eval()
            for number, adapter in enumerate(self.adapters[1:], 1):
                self._peft.load_adapter(adapter, adapter_name=f"a{number}")
        return self._peft

    def set_adapter(self, prompts: Ids, tokens: int) -> int:
        """PEFT, one request after another, the adapter set before each."""
        said = 0
        for number, ids in enumerate(prompts):
            self.peft.set_adapter(f"a{number % len(self.adapters)}")
            said += self._generate(self.peft, [ids], tokens).shape[1] - len(ids)
        return said

    def mixed_batch(self, prompts: Ids, tokens: int) -> int:
        """PEFT, one static batch whose rows name their adapters."""
        names = [f"a{number % len(self.adapters)}" for number in range(len(prompts))]
        out = self._generate(self.peft, prompts, tokens, adapter_names=names)
        return len(prompts) * (out.shape[1] - len(prompts[0]))


class LlamaCpp:
    """llama.cpp's own HTTP server from the xllamacpp wheel, on a file that our export wrote (`kind`: q8_0 or f16), with
    adapters of which each answer names one."""

    def __init__(
        self, folder: Path, home: Path, slots: int, threads: int, context: int, kind: str, adapters: list[Path]
    ) -> None:
        import httpx
        import xllamacpp

        settings: Any = xllamacpp.CommonParams()
        settings.model.path = str(_gguf(folder, home, kind))
        settings.lora_adapters = [
            xllamacpp.CommonAdapterLoraInfo(str(_lora_gguf(folder, one)), 1.0) for one in adapters
        ]
        self._adapters = len(adapters)
        settings.n_ctx, settings.n_parallel = context * slots, slots
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        self._server = xllamacpp.Server(settings)
        self._client = httpx.Client(base_url=self._server.listening_address, timeout=600)

    def answer(self, ids: list[int], tokens: int, number: int = 0) -> int:
        """One answer over HTTP, of exactly so many tokens, streamed as ours is, by the adapter of its number."""
        asked = {
            "prompt": ids, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False,
            "stream": True,
        }  # fmt: skip
        if self._adapters:
            asked["lora"] = [{"id": number % self._adapters, "scale": 1.0}]
        with self._client.stream("POST", "/completion", json=asked) as response:
            last = [line for line in response.iter_lines() if line.startswith("data: {")][-1]
        return int(json.loads(last[6:])["tokens_predicted"])


def _lora_gguf(folder: Path, adapter: Path) -> Path:
    """A PEFT adapter of a Llama as llama.cpp reads it: queries and keys in llama.cpp's order of rotation."""
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    spec = json.loads((adapter / "adapter_config.json").read_text())
    names = {
        "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
        "up_proj": "ffn_up", "down_proj": "ffn_down",
    }  # fmt: skip
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    path = adapter / "adapter.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(spec["lora_alpha"]))
    for name, tensor in load_file(adapter / "adapter_model.safetensors").items():
        parts = name.split(".")
        number, layer, matrix = parts[parts.index("layers") + 1], parts[-3], parts[-2]
        if matrix == "lora_B" and layer in heads:
            tensor = tensor.reshape(heads[layer], 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        key = f"blk.{number}.{names[layer]}.weight.{matrix.lower()}"
        writer.add_tensor(key, np.ascontiguousarray(tensor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf(folder: Path, home: Path, kind: str) -> Path:
    """The model as a file of that kind."""
    name = f"peer-{kind}.gguf"
    if (home / name).exists():
        return home / name
    import torch

    from app.contracts.export import ExportOrder
    from app.contracts.recipe import ModelFiles
    from app.text.template import load_template
    from worker.engine import loading
    from worker.engine.export.gguf_file import write_gguf
    from worker.engine.export.source import Source
    from worker.engine.tokenizer_files import load_tokenizer

    files = ModelFiles(base_dir=str(folder))
    order = ExportOrder(kind=f"gguf_{kind}", files=files, name="peer", prompts=["-"], out_dir=str(home))
    model, tokenizer = loading.load_model(files, torch.float32), load_tokenizer(folder)
    template = load_template(folder, tokenizer.get_vocab())
    source = Source(model, tokenizer, template, folder, [2], 2048, [], [])
    write_gguf(order, source, home)
    return home / name


def at_once(answer: Callable[[list[int], int, int], int], prompts: Ids, tokens: int) -> int:
    """All answers asked in threads of their own; how many tokens came."""
    said = [0] * len(prompts)

    def ask(number: int) -> None:
        said[number] = answer(prompts[number], tokens, number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(said)
