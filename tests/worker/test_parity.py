"""One conversation, the same token ids wherever it goes: training rows, chat page, API, exported folder, GGUF.

Each family has the shape and the kind of template that it is published with.
"""

from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
from transformers import AutoTokenizer

from app.contracts.conversation import Example, Message
from app.contracts.export import ExportOrder
from app.contracts.generation import GenerationRequest, Sampling
from app.contracts.recipe import ModelFiles
from app.deployments import wire
from app.inference import client
from app.inference.targets import Target
from tests.worker.engine import families
from tests.worker.tiny import TEXTS
from worker.engine.encoding import Encoder
from worker.engine.errors import BadData
from worker.engine.export import folders, gguf_file, llama_cpp, source
from worker.engine.generate import fit_prompt, load
from worker.engine.tokenizer_files import load_chat_template

QUESTION, ANSWER, AGAIN = "Where is my card?\n\n  It's n°7.", "It is on its way.", " Où est-ce? 🧀 "


@dataclass(frozen=True)
class Way:
    """A family's template, its markers, whether it takes a system message, and whether GGUF has its shape."""

    template: str
    markers: tuple[str, ...] = ()
    has_system: bool = True
    is_gguf: bool = False


QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ '<|begin|>' }}{% for m in messages %}<|head|>{{ m['role'] }}<|/head|>\n\n{{ m['content'] | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
GEMMA = (
    "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
WAYS = {
    "gpt2": Way(families.CHATML, is_gguf=True),
    "llama": Way(LLAMA, ("<|begin|>", "<|head|>", "<|/head|>", "<|eot|>"), is_gguf=True),
    "qwen2": Way(QWEN),
    "qwen3": Way(QWEN),
    "gemma": Way(GEMMA, ("<bos>", "<start_of_turn>", "<end_of_turn>"), has_system=False),
    "phi": Way(PHI, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "mistral": Way(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), has_system=False, is_gguf=True),
}


def asked_of(way: Way) -> list[Message]:
    """A conversation of three turns, with a system message where the family has one."""
    system = [Message(role="system", content="Be kind, and brief.")] if way.has_system else []
    turns = [("user", QUESTION), ("assistant", ANSWER), ("user", AGAIN)]
    return [*system, *(Message(role=role, content=text) for role, text in turns)]


@pytest.mark.parametrize("family", sorted(WAYS))
def test_a_conversation_is_the_same_ids_everywhere(family: str, tmp_path: Path) -> None:
    way = WAYS[family]
    size = {"n_positions": 256} if family == "gpt2" else {"max_position_embeddings": 256}
    if family == "mistral":
        size["sliding_window"] = None  # type: ignore[assignment]
    base = families.make(family, tmp_path / "base", TEXTS, template=way.template, markers=way.markers, **size)
    files, messages = ModelFiles(base_dir=str(base)), asked_of(way)
    loaded, target = load(files), Target("model:m", "m", files, "p", "w")
    found: dict[str, list[int]] = {}

    encoder = Encoder(loaded.tokenizer, load_chat_template(base, loaded.tokenizer), 0)
    row = Example(rid=1, kind="chat", messages=[*messages, Message(role="assistant", content=ANSWER)])
    ids, learned = encoder.example(row)
    last = len(learned) - learned[::-1].index(True)
    begun = max(at for at in range(last) if learned[at] and not learned[at - 1])
    found["training rows"] = ids[:begun]

    def read(request: GenerationRequest) -> list[int]:
        return fit_prompt(loaded, GenerationRequest.model_validate_json(request.model_dump_json()))[0]

    found["chat page"] = read(client.request_for(target, Sampling(max_tokens=8), messages=messages))
    parts = [{"role": m.role, "content": [{"type": "text", "text": m.content}]} for m in messages]
    ask = wire.parse(orjson.dumps({"model": "m", "messages": parts, "max_tokens": 8}))
    found["API"] = read(client.request_for(target, ask.sampling(0), messages=ask.conversation("")))

    order = {"files": files, "name": "m", "prompts": ["Hi"], "system_prompt": "Be kind." if way.has_system else ""}
    out = tmp_path / "out"
    out.mkdir()
    merged = ExportOrder.model_validate({**order, "kind": "merged", "out_dir": str(out)})
    folders.write_merged(merged, source.load(merged), out)
    turns = [{"role": m.role, "content": m.content} for m in messages]
    exported = AutoTokenizer.from_pretrained(out)
    rendered = exported.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    found["exported folder"] = list(exported(rendered, add_special_tokens=False)["input_ids"])
    assert (
        list(exported.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]) == found["exported folder"]
    )

    single = ExportOrder.model_validate({**order, "kind": "gguf_f16", "out_dir": str(tmp_path)})
    if not way.is_gguf:
        with pytest.raises(BadData, match="Export the whole folder instead"):
            gguf_file.write_gguf(single, source.load(single), tmp_path)
    else:
        gguf_file.write_gguf(single, source.load(single), tmp_path)
        if llama_cpp.is_installed():
            asked = [llama_cpp.Asked([], rendered, 0)]
            found["GGUF"] = llama_cpp.answers(tmp_path / "m-f16.gguf", 256, asked)[0].ids
    assert len(found["chat page"]) > 40
    assert {name: one for name, one in found.items() if one != found["chat page"]} == {}
