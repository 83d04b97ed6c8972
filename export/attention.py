"""tailcut::GroupQueryAttention as a model-local function: ONNX Runtime's own operator, which a kernel may replace.

    tailcut::GroupQueryAttention(qkv, past_key, past_value, seqlens_k, total_sequence_length, cos, sin)
        -> output, present_key, present_value

qkv [batch, sequence, (heads + 2 kv_heads) * head_dim] packed; otherwise inputs, outputs and attributes are those of
com.microsoft::GroupQueryAttention with do_rotary, which is its body. Over a float16 cache the body widens the past and
rounds the present, for that operator wants one type (kernels read and write it as it is, and round what is new before
they attend to it).
"""

from typing import Final

import onnx
from onnx import TensorProto, helper

from tailcut.kernels.stored import DOMAIN

MICROSOFT: Final = "com.microsoft"
ATTENTION: Final = "GroupQueryAttention"
_INPUTS: Final = ("qkv", "past_key", "past_value", "seqlens_k", "total_sequence_length", "cos", "sin")
_OUTPUTS: Final = ("output", "present_key", "present_value")
_PAST: Final = ("past_key", "past_value")
_PRESENT: Final = ("present_key", "present_value")
_INTEGERS: Final = ("num_heads", "kv_num_heads", "local_window_size")
_REALS: Final = ("scale", "softcap")


def attention_function(opset: int, *, halves: bool = False) -> onnx.FunctionProto:
    """The function, importing the model's own opset. halves: past and present are float16."""
    wide = [f"wide_{name}" if halves and name in _PAST else name for name in _INPUTS]
    made = [f"wide_{name}" if halves and name in _PRESENT else name for name in _OUTPUTS]
    body = helper.make_node(ATTENTION, [wide[0], "", "", *wide[1:]], made, domain=MICROSOFT, do_rotary=1)
    body.attribute.extend(_reference(name, onnx.AttributeProto.INT) for name in _INTEGERS)
    body.attribute.extend(_reference(name, onnx.AttributeProto.FLOAT) for name in _REALS)
    before = [_cast(name, f"wide_{name}", TensorProto.FLOAT) for name in _PAST if halves]
    after = [_cast(f"wide_{name}", name, TensorProto.FLOAT16) for name in _PRESENT if halves]
    nodes = [*before, body, *after]
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_function(DOMAIN, ATTENTION, list(_INPUTS), list(_OUTPUTS), nodes, imports, [*_INTEGERS, *_REALS])


def _cast(name: str, to: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [to], to=kind)


def _reference(name: str, kind: int) -> onnx.AttributeProto:
    """An attribute of the body that is the function's own attribute of that name."""
    return onnx.AttributeProto(name=name, ref_attr_name=name, type=kind)  # type: ignore[arg-type]
