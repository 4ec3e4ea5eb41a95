"""Linear layers in the forms that answers are made with: several of one input joined, fp32 or bf16 weights in the
order in which oneDNN reads them, int8 weights."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from worker.engine.shapes import rounded

PACKED_ROWS = 8  # the number of rows for which weights are laid out
_JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class Own(nn.Module):
    """A linear layer in a form of our own, which tells its weights itself."""

    sizes: tuple[int, int]
    nbytes: int = 0
    matrix: Tensor


class Int8Linear(Own):
    """A linear layer with int8 weights, one scale an output; its inputs get one scale a row as they come.

    So a row's result never depends on the rows beside it. `bias` as in the layer that it replaces.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight = matrix(layer).float()
        scales = (weight.abs().amax(1) / 127).clamp_min(1e-12)
        whole = (weight / scales[:, None]).round().clamp(-127, 127).to(torch.int8)
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        quantised = torch._make_per_channel_quantized_tensor(whole, scales.double(), zeros, 0)
        self._packed = torch.ops.quantized.linear_prepack(quantised, None)
        self.bias = layer.bias
        self.sizes, self.nbytes = (whole.shape[0], whole.shape[1]), whole.nbytes

    def forward(self, rows: Tensor) -> Tensor:
        """(…, in) to (…, out) in fp32."""
        flat = rows if rows.dim() == 2 else rows.flatten(0, -2)
        largest = flat.abs().amax(1, keepdim=True).clamp_min_(1e-12)
        out = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            flat / largest, 1 / 127, 128, self._packed
        ).mul_(largest)
        if self.bias is not None:
            out.add_(self.bias)
        return out if rows.dim() == 2 else out.view(*rows.shape[:-1], -1)

    @property
    def matrix(self) -> Tensor:  # type: ignore[override]
        """The weights (out, in) in fp32, as they are used."""
        return torch.ops.quantized.linear_unpack(self._packed)[0].dequantize()

    @property
    def whole(self) -> tuple[Tensor, Tensor]:
        """The weights (out, in) as int8 numbers, and the scale of each output."""
        packed = torch.ops.quantized.linear_unpack(self._packed)[0]
        return packed.int_repr(), packed.q_per_channel_scales()


class PackedLinear(Own):
    """A linear layer whose weights lie in the order in which oneDNN reads them: with few rows up to twice as fast.

    Many rows are filled up to a round number: oneDNN keeps a kernel for every number that it has met.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight = matrix(layer).contiguous()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
        self.bias: Tensor | None = layer.bias  # type: ignore[assignment]
        self.sizes = (weight.shape[0], weight.shape[1])
        self.nbytes = weight.nbytes

    def forward(self, rows: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        flat = rows if rows.dim() == 2 else rows.flatten(0, -2)
        count = flat.shape[0]
        filling = rounded(count) - count if count > PACKED_ROWS else 0
        if filling:
            flat = F.pad(flat, (0, 0, 0, filling))
        out = torch.ops.mkldnn._linear_pointwise(flat, self._packed, self.bias, "none", [], "")
        if filling:
            out = out[:count]
        return out if rows.dim() == 2 else out.view(*rows.shape[:-1], -1)

    @property
    def matrix(self) -> Tensor:  # type: ignore[override]
        """The weights (out, in)."""
        return self._packed.to_dense()


class Part(Own):
    """One of several linear layers of the same input, joined into one product: rows `start` to `end` of its weights.

    The first part holds the `whole`; the others ask it, and it computes once for all of them.
    """

    def __init__(self, joint: "Joint", start: int, end: int) -> None:
        super().__init__()
        self._joint = [joint]  # a list, so that the whole is nobody's submodule twice
        self.start, self.end = start, end

    def forward(self, rows: Tensor) -> Tensor:
        """(…, in) to (…, end - start)."""
        return self._joint[0].of(rows, is_last=self.end == self._joint[0].size)[..., self.start : self.end]

    @property
    def joined(self) -> nn.Module:
        """The layer that this is a part of, in the form that it has now."""
        return self._joint[0].first.whole  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """This part's."""
        bias: Tensor | None = self.joined.bias  # type: ignore[assignment]
        return None if bias is None else bias[self.start : self.end]

    @property
    def sizes(self) -> tuple[int, int]:  # type: ignore[override]
        """(out, in)."""
        return self.end - self.start, sizes(self.joined)[1]

    @property
    def matrix(self) -> Tensor:  # type: ignore[override]
        """The weights (out, in), as they are used."""
        return matrix(self.joined)[self.start : self.end]


class Joint:
    """The joined layer of several parts; it remembers its newest result until the last part has taken it."""

    first: Part

    def __init__(self, size: int) -> None:
        self.size = size
        self._rows: Tensor | None = None
        self._out: Tensor | None = None

    def of(self, rows: Tensor, is_last: bool) -> Tensor:
        """What the joined layer makes of these rows."""
        whole: Any = self.first.whole
        out = self._out if self._rows is rows and self._out is not None else whole(rows)
        self._rows, self._out = (None, None) if is_last else (rows, out)
        return out


Layer = nn.Linear | Conv1D | Own


def matrix(layer: nn.Module) -> Tensor:
    """The weights (out, in) of a linear layer of any kind; GPT-2 keeps them the other way round."""
    if isinstance(layer, Own):
        return layer.matrix
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    return weight.T if isinstance(layer, Conv1D) else weight


def sizes(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer of any kind."""
    if isinstance(layer, Own):
        return layer.sizes
    out, width = matrix(layer).shape
    return out, width


def size_bytes(model: PreTrainedModel) -> int:
    """Memory of the weights."""
    whole = sum(layer.nbytes for layer in model.modules() if isinstance(layer, Own))
    return whole + sum(parameter.nbytes for parameter in model.parameters())


@torch.no_grad()
def join(model: PreTrainedModel) -> None:
    """Make one product of the linear layers that read the same input, in place; the model goes on giving the same."""
    for block in list(model.modules()):
        for names in _JOINED:
            layers: list[Any] = [getattr(block, name, None) for name in names]
            if not all(isinstance(layer, nn.Linear) for layer in layers):
                continue
            if len({(layer.in_features, layer.bias is None) for layer in layers}) > 1:
                continue
            whole = nn.Linear(1, 1, bias=False)
            whole.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
            if layers[0].bias is not None:
                whole.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
            whole.out_features, whole.in_features = whole.weight.shape
            joint, start = Joint(whole.out_features), 0
            for name, layer in zip(names, layers, strict=True):
                part = Part(joint, start, start + layer.out_features)
                setattr(block, name, part)
                if not start:
                    joint.first = part
                    part.whole = whole
                start += layer.out_features


@torch.no_grad()
def own_small_weights(model: PreTrainedModel) -> None:
    """Copy embeddings, norms and biases out of the file that they were read from, in place. Otherwise they keep all of
    it mapped, also the weights of linear layers, which answers read from copies of their own."""
    large = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear | Conv1D)}
    large -= {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Embedding)}
    for parameter in model.parameters():
        if id(parameter) not in large:
            parameter.data = parameter.data.clone()


def packs() -> bool:
    """True where oneDNN can lay out weights for its own products."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")


@torch.no_grad()
def pack(model: PreTrainedModel) -> None:
    """Lay out every linear layer's weights for products of few rows, in place."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear | Conv1D):
            model.set_submodule(name, PackedLinear(layer))
