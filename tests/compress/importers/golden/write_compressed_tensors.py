"""Writes compressed_tensors_0_14_0_1.zip with the last release that had sparse compressors; no test imports this.

    python -m venv old
    old/bin/pip install compressed-tensors==0.14.0.1 torch==2.13.0 "transformers<5" accelerate
    old/bin/python write_compressed_tensors.py

Each folder of the archive is a checkpoint as the library's own ModelCompressor writes it (config.json and
model.safetensors), beside it `expected.safetensors`: what the library itself reads back. Release 0.15.0 has no sparse
compressors any more. `odd` holds tensors of sizes and values that no model has, compressed one by one.
"""

import tempfile
import zipfile
from pathlib import Path

import compressed_tensors
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.compressors.sparse_compressors.sparse_24_bitmask import Sparse24BitMaskTensor
from compressed_tensors.compressors.sparse_compressors.sparse_bitmask import BitmaskTensor
from compressed_tensors.config import BitmaskConfig, Sparse24BitMaskConfig
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

OUT = Path(__file__).with_name("compressed_tensors_0_14_0_1.zip")
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
}


def model_of(dtype: torch.dtype, cut: str) -> LlamaForCausalLM:
    """A random tiny Llama whose block linears are cut at 2:4 or anywhere."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).to(dtype)
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            weight = module.weight.data
            if cut == "2:4":
                kept = weight.view(-1, 4).abs().topk(2, dim=1).indices
                mask = torch.zeros_like(weight.view(-1, 4), dtype=torch.bool).scatter_(1, kept, True).view_as(weight)
            else:
                mask = torch.rand(weight.shape) < 0.3
            module.weight.data = torch.where(mask, weight, torch.zeros_like(weight))
    return model


def write(folder: Path, dtype: torch.dtype, cut: str, quantise: dict[str, object] | None = None) -> None:
    """One checkpoint, and what the library reads back from it."""
    model = model_of(dtype, cut)
    settings = {"targets": ["Linear"], "ignore": ["lm_head"], "global_sparsity": 0.5, "sparsity_structure": cut}
    sparsity = Sparse24BitMaskConfig(**settings) if cut == "2:4" else BitmaskConfig(**settings)
    config = None
    if quantise is not None:
        config = quantised(model, quantise)
        if quantise["format"] == "pack-quantized":
            sparsity = None
    compressor = ModelCompressor(sparsity_config=sparsity, quantization_config=config)
    compressor.compress_model(model)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    folder.mkdir()
    model.config.save_pretrained(folder)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    compressor.update_config(folder)
    compressor.decompress_model(model)
    names = {name for name, _ in LlamaForCausalLM(LlamaConfig(**SIZES)).named_parameters()}
    back = {name: value.contiguous() for name, value in model.state_dict().items() if name in names}
    save_file(back, folder / "expected.safetensors")


def quantised(model: LlamaForCausalLM, quantise: dict[str, object]) -> QuantizationConfig:
    """Scales from each matrix's own largest values."""
    arguments = QuantizationArgs(**quantise["weights"])
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=quantise["format"],
        ignore=["lm_head"],
        quantization_status="frozen",
    )
    apply_quantization_config(model, config)
    top = 448.0 if arguments.type == "float" else 2 ** (arguments.num_bits - 1) - 1
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            scale, weight = module.weight_scale.data, module.weight.data.float()
            groups = (
                weight.reshape(weight.shape[0], -1, weight.shape[1] // scale.shape[-1]) if scale.ndim == 2 else weight
            )
            largest = groups.abs().amax(-1) if scale.ndim == 2 else weight.abs().max().reshape(scale.shape)
            module.weight_scale.data = (largest / top).clamp(min=1e-4).reshape(scale.shape).to(scale.dtype)
    return config


def odd(folder: Path) -> None:
    """Tensors one by one, by name and dtype."""
    stored, expected = {}, {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int8):
        for rows, columns in ((1, 1), (3, 5), (7, 9), (1, 17), (5, 8)):
            special = (
                torch.tensor([0, 1, -1, 0, 5])
                if dtype == torch.int8
                else torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1.5, -2.0, 0.0])
            )
            value = special.to(dtype).repeat(rows * columns)[: rows * columns].reshape(rows, columns)
            for kind, dense in (("mixed", value), ("zero", torch.zeros_like(value)), ("full", torch.ones_like(value))):
                name = f"{kind}.{str(dtype).removeprefix('torch.')}.{rows}x{columns}"
                packed = BitmaskTensor.from_dense(dense)
                stored |= packed.dict(name)
                expected[f"{name}.weight"] = packed.decompress()
        for rows, columns in ((2, 6), (1, 4), (3, 12)):  # 6: groups of four run over the ends of rows
            name = f"two_four.{str(dtype).removeprefix('torch.')}.{rows}x{columns}"
            torch.manual_seed(rows)
            packed = Sparse24BitMaskTensor.from_dense((torch.randn(rows, columns) * 9).to(dtype))
            stored |= packed.dict(name)
            expected[f"{name}.weight"] = packed.decompress()
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in stored.items()}, folder / "model.safetensors")
    save_file(expected, folder / "expected.safetensors")


def main() -> None:
    int8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    int4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 8, "symmetric": True}
    fp8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        for name, dtype in (("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)):
            write(top / f"bitmask_{name}", dtype, "unstructured")
            write(top / f"two_four_{name}", dtype, "2:4")
        write(top / "bitmask_int8", torch.bfloat16, "unstructured", {"format": "int-quantized", "weights": int8})
        write(top / "two_four_fp8", torch.bfloat16, "2:4", {"format": "float-quantized", "weights": fp8})
        write(top / "packed_int4", torch.float16, "unstructured", {"format": "pack-quantized", "weights": int4})
        odd(top / "odd")
        (top / "VERSION").write_text(
            f"compressed-tensors {compressed_tensors.__version__}, torch {torch.__version__}\n"
        )
        with zipfile.ZipFile(OUT, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(top.rglob("*")):
                if path.is_file() and path.name != "generation_config.json":
                    archive.write(path, path.relative_to(top))


if __name__ == "__main__":
    main()
