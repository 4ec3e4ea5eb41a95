"""A GGUF file for llama.cpp and Ollama: written, read back tensor by tensor, and asked where llama.cpp is installed."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

from app.contracts.export import Check, ExportOrder, ExportReport
from worker.engine.errors import BadData
from worker.engine.export import layouts, llama_cpp, ollama, vocabulary
from worker.engine.export.layouts import Array
from worker.engine.export.source import Source

FORMATS = {
    "gguf_f16": (Kind.F16, gguf.LlamaFileType.MOSTLY_F16),
    "gguf_q8_0": (Kind.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "gguf_q4_0": (Kind.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
BLOCK = 32  # values that share a scale in q8_0 and q4_0
# Words and the choice between them suffer most from four bits, so these two keep eight.
WORDS = ("token_embd", "output.")


def write_gguf(order: ExportOrder, source: Source, folder: Path) -> ExportReport:
    """The file and its Modelfile. Raises BadData for a model or tokenizer that GGUF cannot carry, or a wrong file."""
    kind, file_type = FORMATS[order.kind]
    model: Any = source.model
    name = f"{order.name}-{kind.name.lower()}.gguf"
    path = folder / name
    found = vocabulary.read(source.tokenizer, model.get_input_embeddings().weight.shape[0])
    writer = gguf.GGUFWriter(path, layouts.architecture(model))
    writer.add_name(order.title or order.name)
    writer.add_file_type(file_type)
    for key, value in layouts.settings(model).items():
        name_of = f"{layouts.architecture(model)}.{key}"
        if isinstance(value, float):
            writer.add_float32(name_of, value)
        else:
            writer.add_uint32(name_of, value)
    _add_vocabulary(writer, found, source)
    for tensor, array in layouts.tensors(model):
        stored = stored_kind(tensor, array, kind)
        writer.add_tensor(tensor, quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checks = [read_back(path, source, kind, len(found.tokens))]
    notes = []
    if llama_cpp.is_installed():
        checks.insert(0, llama_cpp.ask(path, source))
    else:
        notes.append(
            "llama.cpp is not installed here, so the file was read back tensor by tensor and not asked anything."
        )
    notes += ollama.write_modelfile(folder, name, order, source)
    parameters = sum(p.numel() for p in model.parameters())
    return ExportReport(number_format=kind.name.lower(), checks=checks, notes=notes, parameters=parameters)


def _add_vocabulary(writer: gguf.GGUFWriter, found: vocabulary.Vocabulary, source: Source) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(found.rule)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.kinds)
    writer.add_token_merges(found.merges)
    ids = {text: number for number, text in enumerate(found.tokens)}
    special = source.template.special_tokens
    end = source.end_ids[0] if source.end_ids else 0
    writer.add_eos_token_id(end)
    # Without one, llama.cpp assumes GPT-2's number, which is another word here.
    writer.add_bos_token_id(ids.get(special.get("bos_token", ""), end))
    if special.get("pad_token") in ids:
        writer.add_pad_token_id(ids[special["pad_token"]])
    writer.add_add_bos_token(False)  # the template says it where the model wants it
    writer.add_chat_template(source.template.source)


def stored_kind(name: str, array: Array, kind: Kind) -> Kind:
    """The number format of one tensor: vectors, norms and positions stay fp32."""
    if array.ndim < 2 or name.startswith("position_embd"):
        return Kind.F32
    if kind is Kind.F16 or array.shape[-1] % BLOCK:
        return Kind.F16
    return Kind.Q8_0 if name.startswith(WORDS) else kind


def read_back(path: Path, source: Source, kind: Kind, tokens: int) -> Check:
    """Every tensor of the file against the weights, within the rounding of its format. Raises BadData."""
    reader = gguf.GGUFReader(path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    count = 0
    for name, array in layouts.tensors(source.model):
        tensor = stored.pop(name, None)
        if tensor is None:
            raise BadData(f"The written file lacks {name}. Try again; if it happens twice, the disk is at fault.")
        found = dequantize(tensor.data, tensor.tensor_type).reshape(array.shape)
        if not np.all(np.abs(found - array) <= _rounding(array, tensor.tensor_type)):
            raise BadData(f"The written file differs from the model in {name}. Nothing was exported.")
        count += 1
    if stored or len(reader.get_field("tokenizer.ggml.tokens").data) != tokens:  # type: ignore[union-attr]
        raise BadData("The written file holds other tensors or tokens than the model. Nothing was exported.")
    return Check(tool=f"gguf {version('gguf')}", tensors=count)


def _rounding(array: Array, kind: Kind) -> Array:
    """The largest error that the format may make in each value: half a unit in the last place, or half to one step."""
    if kind is Kind.F32:
        return np.zeros(1, np.float32)
    if kind is Kind.F16:
        return np.maximum(np.abs(array) * 2.0**-11, 2.0**-25)
    blocks = array.reshape(*array.shape[:-1], -1, BLOCK)
    most = np.abs(blocks).max(axis=-1, keepdims=True)
    # The step itself is kept in half precision. Four bits have a step less on one side of zero, so the far end of that
    # side is a whole step off.
    if kind is Kind.Q4_0:
        bound = most / 8 * (1.0 + 8 * 2.0**-11) + 2.0**-24
    else:
        bound = most / 127 * (0.5 + 127 * 2.0**-11) + 2.0**-24
    return np.broadcast_to(bound, blocks.shape).reshape(array.shape)
