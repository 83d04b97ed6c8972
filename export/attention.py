"""tailcut::GroupQueryAttention as a model-local function: ONNX Runtime's own operator, which a kernel may replace.

    tailcut::GroupQueryAttention(qkv, past_key, past_value, seqlens_k, total_sequence_length, cos, sin)
        -> output, present_key, present_value

qkv [batch, sequence, (heads + 2 kv_heads) * head_dim] packed; otherwise inputs, outputs and attributes are those of
com.microsoft::GroupQueryAttention with do_rotary, which is its body.
"""

from typing import Final

import onnx
from onnx import helper

from tailcut.kernels.stored import DOMAIN

MICROSOFT: Final = "com.microsoft"
ATTENTION: Final = "GroupQueryAttention"
_INPUTS: Final = ("qkv", "past_key", "past_value", "seqlens_k", "total_sequence_length", "cos", "sin")
_OUTPUTS: Final = ("output", "present_key", "present_value")
_INTEGERS: Final = ("num_heads", "kv_num_heads", "local_window_size")
_REALS: Final = ("scale", "softcap")


def attention_function(opset: int) -> onnx.FunctionProto:
    """The function, importing the model's own opset."""
    qkv, *rest = _INPUTS
    body = helper.make_node(ATTENTION, [qkv, "", "", *rest], _OUTPUTS, domain=MICROSOFT, do_rotary=1)
    body.attribute.extend(_reference(name, onnx.AttributeProto.INT) for name in _INTEGERS)
    body.attribute.extend(_reference(name, onnx.AttributeProto.FLOAT) for name in _REALS)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_function(
        DOMAIN, ATTENTION, list(_INPUTS), list(_OUTPUTS), [body], imports, [*_INTEGERS, *_REALS]
    )


def _reference(name: str, kind: int) -> onnx.AttributeProto:
    """An attribute of the body that is the function's own attribute of that name."""
    return onnx.AttributeProto(name=name, ref_attr_name=name, type=kind)  # type: ignore[arg-type]
