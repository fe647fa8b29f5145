"""What an operation is, told by the torch function or layer that it calls."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from torch.nn.modules import activation, batchnorm, conv, dropout, instancenorm

from .flow import Op

# Calls that only move, pick or repeat elements of one tensor.
VIEWS = frozenset({
    "reshape", "view", "permute", "transpose", "contiguous", "flatten", "unflatten", "unsqueeze",
    "squeeze", "getitem", "unbind", "chunk", "split", "split_with_sizes", "tensor_split", "select",
    "narrow", "expand", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "getattr",
})  # fmt: skip
# Calls that leave every element where it is and what it is, up to precision and dropout.
PASSES = frozenset({
    "to", "type", "type_as", "float", "double", "half", "bfloat16", "clone", "detach", "dropout",
    "Identity", "contiguous",
})  # fmt: skip
MOVES = frozenset({"roll", "pad", "constant_pad_nd"})
JOINS = frozenset({"cat", "concat", "concatenate", "stack"})
ADDS = frozenset({"add", "iadd", "add_"})
PRODUCTS = frozenset({"mul", "imul", "mul_", "multiply"})
MATMULS = frozenset({"matmul", "bmm", "baddbmm", "einsum"})
FUSED_ATTENTION = "multi_head_attention_forward"
SDPA = "scaled_dot_product_attention"
_ACTIVATIONS = frozenset({
    "gelu", "relu", "relu_", "relu6", "silu", "silu_", "sigmoid", "tanh", "hardswish", "hardtanh",
    "leaky_relu", "elu", "selu", "celu", "mish", "softplus", "hardsigmoid", "prelu", "rrelu", "erf",
})  # fmt: skip
_NORMS = frozenset({"layer_norm", "group_norm", "batch_norm", "rms_norm", "instance_norm"})
_NORM_LAYERS = (
    nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, batchnorm._NormBase, instancenorm._InstanceNorm,
)  # fmt: skip
_NO_ACTIVATIONS = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.MultiheadAttention)


class Matrix(NamedTuple):
    """The weight that a linear op applies."""

    path: str
    out_features: int
    in_features: int
    rows: tuple[int, int] | None = None  # of the parameter, if only some are applied


def matrix(op: Op) -> Matrix | None:
    """The matrix of a linear layer, or of `F.linear` on a parameter of the model."""
    if isinstance(op.module, nn.Linear):
        return Matrix(f"{op.path}.weight", op.module.out_features, op.module.in_features)
    if op.name != "linear":
        return None
    weight = op.operand(1, "weight")
    if weight is None or len(weight.shape) != 2:
        return None
    out_features, in_features = weight.shape
    if weight.name == "get_attr":
        return Matrix(weight.path, out_features, in_features)
    rows = _piece(weight)
    source = weight.inputs[0].inputs[0] if rows is not None else weight
    return None if rows is None else Matrix(source.path, out_features, in_features, rows)


def pointwise(op: Op) -> Matrix | None:
    """The matrix that a convolution applies to the channels of each position, if that is all."""
    layer = op.module
    if not isinstance(layer, conv._ConvNd) or layer.transposed or layer.groups != 1:
        return None
    padded = layer.padding if isinstance(layer.padding, tuple) else ()
    if {*layer.kernel_size, *layer.stride} != {1} or any(padded):
        return None
    return Matrix(f"{op.path}.weight", layer.out_channels, layer.in_channels)


def layer_matrix(op: Op) -> Matrix | None:
    """The matrix of a linear layer or of a pointwise convolution."""
    return matrix(op) or pointwise(op)


def _piece(weight: Op) -> tuple[int, int] | None:
    """The rows of a parameter that an item of its `chunk` or `split` holds."""
    split = weight.inputs[0] if weight.name == "getitem" and weight.inputs else None
    if split is None or split.name not in ("chunk", "split", "split_with_sizes", "tensor_split"):
        return None
    number = weight.node.args[1]
    owner = split.inputs[0]
    if owner.name != "get_attr" or not isinstance(number, int):
        return None
    items = {u.node.args[1]: u.shape for u in split.users if u.name == "getitem"}
    sizes = split.node.args[1] if len(split.node.args) > 1 else None
    if isinstance(sizes, (tuple, list)) and all(type(s) is int for s in sizes):
        start = sum(sizes[:number])
    else:
        start = number * items.get(0, weight.shape)[0]
    return (start, start + weight.shape[0])


def is_norm(op: Op) -> bool:
    """Whether the op normalises over channels with learned or no scale."""
    return op.name in _NORMS or isinstance(op.module, _NORM_LAYERS)


def norm_path(op: Op) -> str:
    """Path of the module that owns a norm."""
    if op.module is not None:
        return op.path
    owned = [i.path.rpartition(".")[0] for i in op.inputs if i.name == "get_attr"]
    return owned[0] if owned else op.frame.path


def is_conv(op: Op) -> bool:
    """Whether the op is a convolution."""
    return isinstance(op.module, conv._ConvNd) or op.name in ("conv1d", "conv2d", "conv3d")


def is_depthwise(op: Op) -> bool:
    """Whether a convolution keeps channels apart."""
    if isinstance(op.module, conv._ConvNd):
        return bool(1 < op.module.in_channels == op.module.groups)
    weight = op.operand(1, "weight")
    groups: object = op.node.args[6] if len(op.node.args) > 6 else op.node.kwargs.get("groups", 1)
    single = weight is not None and len(weight.shape) > 1 and weight.shape[1] == 1
    return single and groups != 1


def is_activation(op: Op) -> bool:
    """Whether the op is an elementwise nonlinearity."""
    if op.name in _ACTIVATIONS:
        return True
    layer = op.module
    torch_own = layer is not None and type(layer).__module__ == activation.__name__
    return torch_own and not isinstance(layer, _NO_ACTIVATIONS)


def is_transparent(op: Op) -> bool:
    """Whether the op only moves the elements of its first input."""
    if not op.inputs:
        return False
    if op.name in PASSES or op.name in MOVES or isinstance(op.module, dropout._DropoutNd):
        return True
    return op.name in VIEWS and len(op.inputs) == 1


def strip(op: Op) -> Op:
    """The op whose elements `op` shows, behind views, casts, shifts and dropout."""
    while is_transparent(op):
        op = op.inputs[0]
    return op
