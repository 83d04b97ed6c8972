"""SparseML 1.8 in its own process: a model directory, token ids and a recipe in, a directory with zeros out.

Commands: open, cut, close. The recipe is run by SparseML's own session, as its one-shot entry point does; two things it
would otherwise get wrong without a word are set here: `start=-1` (with 0.0 one-shot modifiers never begin) and an
attention mask in every batch (padding is masked by multiplying with it). Weights are float32 throughout.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import time
import types
from typing import TYPE_CHECKING, Any, Dict

if TYPE_CHECKING:
    from tailcut.bench.workers import wire
else:
    import wire

_state: Dict[str, Any] = {}


def open_model(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    sys.path.extend(body["lent"])  # behind the environment's own packages
    os.chdir(tempfile.mkdtemp(prefix="sparseml-"))  # it writes a log folder into the working directory
    _stand_in_for_onnx_mapping()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(int(body["threads"]))
    options: Dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    model: Any = AutoModelForCausalLM.from_pretrained(
        body["model"], dtype=torch.float32, use_safetensors=True, **options
    )
    _state.update(model=model.eval(), tokenizer=AutoTokenizer.from_pretrained(body["model"], **options))
    return {"versions": _versions()}, {}


def cut(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """`recipe` (YAML text) with `tokens` int64 [samples, length] -> `out` (a directory), seconds and what it logged."""
    import torch

    framework = importlib.import_module("sparseml.core.framework").Framework.pytorch
    create_session = importlib.import_module("sparseml.core.session").create_session
    model = _state["model"]
    ids = torch.from_numpy(arrays["tokens"].copy())
    batches = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids]
    began = time.perf_counter()
    with create_session() as session:
        session.initialize(
            framework=framework, recipe=body["recipe"], model=model, calib_data=batches, start=-1.0, copy_data=False
        )
        session.finalize()
    seconds = time.perf_counter() - began
    model.save_pretrained(body["out"], safe_serialization=True)
    _state["tokenizer"].save_pretrained(body["out"])
    return {"seconds": seconds}, {}


def _stand_in_for_onnx_mapping() -> None:
    """onnx 1.15 and later have no `onnx.mapping`; SparseML's ONNX part imports it, its pruning never uses it."""
    import onnx

    if not hasattr(onnx, "mapping"):
        empty: Any = types.ModuleType("onnx.mapping")
        empty.TENSOR_TYPE_TO_NP_TYPE, empty.NP_TYPE_TO_TENSOR_TYPE = {}, {}
        sys.modules["onnx.mapping"] = empty
        vars(onnx)["mapping"] = empty


def _versions() -> Dict[str, str]:
    version = importlib.import_module("importlib.metadata").version
    return {name: str(version(name)) for name in ("sparseml", "torch", "transformers", "numpy")}


if __name__ == "__main__":
    raise SystemExit(wire.serve({"open": open_model, "cut": cut}))
