"""Exported files are loaded by those who will load them, and a file that is wrong is not called ready."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.contracts.conversation import Message
from app.contracts.export import ExportOrder
from app.contracts.recipe import ModelFiles, Overlay
from app.text.template import CHATML, PLAIN, ChatTemplate
from tests.worker.tiny import make_model
from worker.engine import tokenizer as own_tokenizers
from worker.engine.errors import BadData
from worker.engine.export import folders, gguf_file, llama_cpp, ollama, source, vocabulary

QUESTIONS = ["How do I reset my password?", "Where is my card?", "What is this?", "Please help", "Hi", "12", "é?", "No"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def adapter(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(llama)
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(folder)
    return folder


def an_order(kind: str, base: Path, out: Path, *overlays: Overlay, **more: object) -> ExportOrder:
    files = ModelFiles(base_dir=str(base), overlays=list(overlays))
    return ExportOrder.model_validate(
        {"kind": kind, "files": files, "name": "warm", "prompts": QUESTIONS, "out_dir": str(out)} | more
    )


def said(model: torch.nn.Module, ids: list[int], count: int) -> list[int]:
    """Greedy tokens by the plainest loop there is."""
    with torch.inference_mode():
        found = list(ids)
        for _ in range(count):
            found.append(int(model(input_ids=torch.tensor([found])).logits[0, -1].argmax()))
    return found[len(ids) :]


def test_an_adapter_answers_like_the_model_when_peft_loads_it(llama: Path, adapter: Path, tmp_path: Path) -> None:
    order = an_order("adapter", llama, tmp_path, Overlay(kind="lora", dir=str(adapter)), base_name="acme/tiny")
    found = source.load(order)
    ours = found.answers[0]
    report = folders.write_adapter(order, found, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "acme/tiny"
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path).eval()
    assert said(loaded, found.prompts[0], len(ours)) == ours
    base = AutoModelForCausalLM.from_pretrained(llama)
    assert said(base, found.prompts[0], len(ours)) != ours, "the adapter of this test changes nothing"
    assert (report.checks[0].prompts, report.checks[0].tool[:4]) == (8, "PEFT")


def test_a_merged_folder_is_a_whole_model(llama: Path, adapter: Path, tmp_path: Path) -> None:
    order = an_order("merged", llama, tmp_path, Overlay(kind="lora", dir=str(adapter)), system_prompt="Be kind.")
    found = source.load(order)
    ours = found.answers[1]
    report = folders.write_merged(order, found, tmp_path)
    assert report.checks[0].is_exact
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": QUESTIONS[1]}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert ids == found.prompts[1]
    assert said(AutoModelForCausalLM.from_pretrained(tmp_path), ids, len(ours)) == ours


def test_weights_that_need_fp32_to_answer_alike_are_written_in_it(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(settings | {"dtype": "float16"}))
    layers = tmp_path / "layers"
    layers.mkdir()
    weights = load_file(base / "model.safetensors")
    # Beyond what half precision can hold: converted, the model says something else.
    changed = {"model.norm.weight": weights["model.norm.weight"] * 1e6}
    save_file(changed, layers / "layers.safetensors")
    order = an_order("merged", base, tmp_path / "out", Overlay(kind="layers", dir=str(layers)))
    (tmp_path / "out").mkdir()
    report = folders.write_merged(order, source.load(order), tmp_path / "out")
    assert report.number_format == "float32"
    assert report.notes
    assert report.checks[0].is_exact


def test_a_tokenizer_that_reads_differently_is_no_export(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = an_order("merged", llama, tmp_path)
    found = source.load(order)
    found.template = ChatTemplate(CHATML.replace("user", "USER").replace("message['role']", "message['role']|upper"))
    with pytest.raises(BadData, match="reads the questions differently"):
        folders.write_merged(order, found, tmp_path)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["gguf_f16", "gguf_q8_0"])
def test_gguf_holds_the_model(architecture: str, kind: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", architecture=architecture)
    order = an_order(kind, model, tmp_path, system_prompt="Be kind.")
    report = gguf_file.write_gguf(order, source.load(order), tmp_path)
    assert all(check.tensors > 10 for check in report.checks if not check.prompts)
    asked = [check for check in report.checks if check.prompts]
    # Random weights: in eight bits some of their answers turn another way early.
    least = 0.9 if kind == "gguf_f16" else 0.2
    assert not asked or asked[0].same_tokens / asked[0].tokens > least
    text = (tmp_path / "Modelfile").read_text()
    assert text.startswith("FROM ./warm-")
    assert '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>' in text
    assert 'SYSTEM """Be kind."""' in text


def test_four_bits_hold_what_fits_into_them(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    for name, weight in weights.items():
        if weight.ndim == 2 and "embed" not in name:  # rounded once, the same again: nothing is lost a second time
            weights[name] = torch.tensor(dequantize(quantize(weight.numpy(), Kind.Q4_0), Kind.Q4_0))
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    order = an_order("gguf_q4_0", model, tmp_path)
    report = gguf_file.write_gguf(order, source.load(order), tmp_path)
    assert report.number_format == "q4_0"
    stored = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(tmp_path / "warm-q4_0.gguf").tensors}
    assert (stored["token_embd.weight"], stored["blk.0.attn_q.weight"]) == (Kind.Q8_0, Kind.Q4_0)
    asked = [check for check in report.checks if check.prompts]
    assert not asked or asked[0].same_tokens / asked[0].tokens > 0.2


@pytest.mark.skipif(not llama_cpp.is_installed(), reason="llama.cpp is not installed here")
def test_what_llama_cpp_does_with_a_bad_file_ends_in_a_sentence(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(BadData, match="could not open the file"):
        llama_cpp.answers(bad, 64, [llama_cpp.Asked([1], None, 1)])
    with pytest.raises(BadData, match="did not answer the file within"):
        llama_cpp.answers(bad, 64, [], patience_s=0.01)


def test_a_gguf_file_with_one_wrong_value_is_found_out(llama: Path, tmp_path: Path) -> None:
    order = an_order("gguf_q8_0", llama, tmp_path)
    found = source.load(order)
    gguf_file.write_gguf(order, found, tmp_path)
    path = tmp_path / "warm-q8_0.gguf"
    kind, words = gguf_file.FORMATS["gguf_q8_0"][0], found.model.config.vocab_size
    assert gguf_file.read_back(path, found, kind, words).tensors
    with torch.no_grad():
        found.model.model.layers[1].mlp.up_proj.weight[3, 5] += 0.2
    with pytest.raises(BadData, match=r"blk\.1\.ffn_up"):
        gguf_file.read_back(path, found, kind, words)


def test_rows_are_paired_as_llama_turns_them() -> None:
    """llama.cpp turns (2i, 2i + 1) where transformers turns (i, i + half)."""
    from worker.engine.export.layouts import paired

    rows = np.arange(8)[:, None] * np.ones((1, 3))
    assert paired(rows, 1)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert paired(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_tokenizers_that_gguf_cannot_carry_are_refused() -> None:
    with pytest.raises(BadData, match="single characters"):
        vocabulary.read(own_tokenizers.train_characters(["hello"]), 20)
    changed: Tokenizer = own_tokenizers.train_bpe(iter(["hello there"] * 9), 300)
    assert vocabulary.read(changed, 300).rule == "smollm"
    changed.normalizer = normalizers.Lowercase()
    with pytest.raises(BadData, match="rewrites text"):
        vocabulary.read(changed, 300)


GEMMA = (
    "{{ '<bos>' }}{% for m in messages %}{% if m['role'] == 'system' %}<start>sys\n{{ m['content'] }}<end>\n"
    "{% else %}{{ '<start>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] }}<end>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<start>model\n' }}{% endif %}"
)
MERGES_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{% else %}[{{ m['role'] }}]"
    "{{ messages[0]['content'] if loop.index0 == 1 and messages[0]['role'] == 'system' else '' }}{{ m['content'] }}"
    "{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [CHATML, PLAIN, GEMMA])
def test_a_modelfile_says_what_the_template_says(template: str) -> None:
    chat = ChatTemplate(template, {"eos_token": "<|endoftext|>"})
    found = ollama.pieces(chat)
    assert found is not None
    turns = [Message(role=role, content=text) for role, text in (("user", "a"), ("assistant", "b"), ("user", "{{c}}"))]
    assert found.text(turns) == chat.text(turns, add_generation_prompt=True)


GO = """package main

import (
	"encoding/json"
	"os"
	"text/template"
)

func main() {
	var in struct {
		Template string
		Messages []struct{ Role, Content string }
	}
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		panic(err)
	}
	if err := template.Must(template.New("chat").Parse(in.Template)).Execute(os.Stdout, in); err != nil {
		panic(err)
	}
}
"""


@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed here, and Ollama's templates are Go's")
@pytest.mark.parametrize("template", [CHATML, PLAIN, GEMMA])
def test_go_writes_what_the_template_says(template: str, tmp_path: Path) -> None:
    chat = ChatTemplate(template, {"eos_token": "<|endoftext|>"})
    found = ollama.pieces(chat)
    assert found is not None
    turns = [Message(role=role, content=text) for role, text in (("user", "a"), ("assistant", "b"), ("user", "{{c}}"))]
    (tmp_path / "main.go").write_text(GO)
    order = {"Template": found.go(), "Messages": [{"Role": turn.role, "Content": turn.content} for turn in turns]}
    done = subprocess.run(
        ["go", "run", str(tmp_path / "main.go")],
        input=json.dumps(order).encode(),
        capture_output=True,
        check=True,
        env={**os.environ, "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off"},
    )
    assert done.stdout.decode() == chat.text(turns, add_generation_prompt=True)


def test_a_template_that_moves_contents_has_no_modelfile() -> None:
    assert ollama.pieces(ChatTemplate(MERGES_SYSTEM)) is None
    assert ollama.quoted("a {{ b") == 'a {{ "{{" }} b'
