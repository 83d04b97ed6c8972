"""GGUF files, dequantised: Llama and Gemma 3 by tailcut's own readers, other families by transformers' loader.

The own readers (compress/models) are exact and take one shard of memory; they want the tokenizers they know. Whatever they
decline goes through transformers, which holds the whole model in float32 and knows about twenty families. Either way the
result is the dequantised model, and its manifest says so.
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

from tailcut.compress.importers import Brought, ImportOptions
from tailcut.compress.importers._gguf_header import GgufHeader, is_gguf, read_header
from tailcut.compress.models import _gguf, _gguf_gemma3, _gguf_llama
from tailcut.compress.models._writing import write_json, write_shards
from tailcut.errors import InputError
from tailcut.files import sha256_file
from tailcut.progress import Reporter

SUMMARY: Final = "GGUF files, dequantised to float32 (Llama and Gemma 3 natively, others through transformers)"
MAKES: Final[Literal["model", "scores"]] = "model"
_OWN: Final[Mapping[str, ModuleType]] = {"llama": _gguf_llama, "gemma3": _gguf_gemma3}
_BLOCKS_A_SHARD: Final = 8


def recognises(source: Path) -> str | None:
    """A file that begins as GGUF does."""
    if not source.is_file() or not is_gguf(source):
        return None
    try:
        header = read_header(source)
    except InputError:
        return "a GGUF file"
    kinds = ", ".join(f"{count} {kind}" for kind, count in header.kinds.items())
    return f"a GGUF file ({header.family}: {kinds})"


def bring_in(source: Path, directory: Path, options: ImportOptions, report: Reporter) -> Brought:
    """Dequantise into `directory`; `options` is not used."""
    header = read_header(source)  # every length is checked before the gguf package sees the file
    texts = _texts(source, header)
    if texts is not None:
        reader = "tailcut"
        _write_own(source, directory, texts, _OWN[header.family], report)
    else:
        reader = "transformers"
        _write_by_transformers(source, directory, report)
    kinds = ", ".join(f"{kind} {count}" for kind, count in header.kinds.items())
    name = str(header.fields.get("general.name", source.stem))
    note = f"{name}: GGUF weights ({kinds}) dequantised: quality is that of the dequantised model, not of its original"
    return Brought(
        {"model": sha256_file(source), "name": source.stem}, {"gguf_types": kinds, "reader": reader}, (note,)
    )


def _texts(source: Path, header: GgufHeader) -> dict[str, Any] | None:
    """The JSON files beside the weights by our own reader; None where it declines the family or the tokenizer."""
    family = _OWN.get(header.family)
    if family is None:
        return None
    model = _gguf.open_gguf(source)
    try:
        return {
            "config.json": family.config(model),
            "generation_config.json": _gguf.special_ids(model),
            "tokenizer.json": family.tokenizer(model),
            "tokenizer_config.json": family.tokenizer_config(model),
        }
    except (InputError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _write_own(source: Path, directory: Path, texts: Mapping[str, Any], family: ModuleType, report: Reporter) -> None:
    model = _gguf.open_gguf(source)
    names = _gguf.groups(model, _BLOCKS_A_SHARD)
    try:
        write_shards(directory, family.dequantised(model, names), len(names), report)
    except (RuntimeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{source}: a tensor cannot be dequantised ({error})") from error
    for name, body in texts.items():
        write_json(directory / name, body, indent=None)


def _write_by_transformers(source: Path, directory: Path, report: Reporter) -> None:
    """Load with transformers' GGUF loader and save what it made; InputError with its own words where it cannot."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name, "local_files_only": True}
    makers: tuple[Any, Any] = (AutoModelForCausalLM, AutoTokenizer)  # their methods carry no annotations
    report("read", 0, 2, source.name)
    try:
        model = makers[0].from_pretrained(**where, dtype=torch.float32)
        report("read", 1, 2, "tokenizer")
        tokenizer = makers[1].from_pretrained(**where)
    except Exception as error:  # the loaders raise whatever class their parsers do
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{source}: neither tailcut nor transformers reads this GGUF file ({reason})") from error
    # what is left is plain float32; transformers refuses to save while the model says it is quantised
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    report("read", 2, 2, source.name)
