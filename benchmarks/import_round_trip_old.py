"""Writes a Hugging Face directory as compressed-tensors' sparse kinds; run by import_round_trip.py in an old environment.

    python import_round_trip_old.py SOURCE OUT sparse-24-bitmask|sparse-bitmask float32|bfloat16

Needs compressed-tensors 0.14.0.1, the last release with sparse compressors. Prints its version and torch's as JSON.
"""

import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.config import BitmaskConfig, Sparse24BitMaskConfig
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


def main() -> None:
    source, out, form, dtype = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], getattr(torch, sys.argv[4])
    model = AutoModelForCausalLM.from_pretrained(source, torch_dtype=dtype, local_files_only=True)
    kind, structure = (Sparse24BitMaskConfig, "2:4") if "24" in form else (BitmaskConfig, "unstructured")
    config = kind(targets=["Linear"], ignore=["lm_head"], global_sparsity=0.5, sparsity_structure=structure)
    compressor = ModelCompressor(sparsity_config=config)
    compressor.compress_model(model)
    out.mkdir()
    model.config.save_pretrained(out)
    left_out = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    state = {name: value.contiguous() for name, value in model.state_dict().items() if name not in left_out}
    save_file(state, out / "model.safetensors", {"format": "pt"})
    compressor.update_config(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (source / name).is_file():
            shutil.copy(source / name, out / name)
    print(json.dumps({name: version(name) for name in ("compressed-tensors", "torch", "transformers")}))


if __name__ == "__main__":
    main()
