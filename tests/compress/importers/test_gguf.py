"""GGUF files become model directories; a header that lies is refused before the gguf package sees the file."""

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailcut.checkpoint import Checkpoint
from tailcut.compress.adopting import bring, detect
from tailcut.compress.importers._gguf_header import read_header
from tailcut.errors import InputError
from tailcut.manifest import verify

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
Tailcut = Callable[..., tuple[int, str, str]]
HIDDEN, INNER, HEADS, KV = 64, 96, 4, 2


def write_gguf(
    path: Path, family: str = "llama", kind: str = "Q8_0", pre: str = "smollm"
) -> dict[str, np.ndarray[Any, Any]]:
    """A tiny model with every name llama.cpp writes; what its tensors hold after rounding."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, family)
    writer.add_name("tiny")
    for add, value in (
        (writer.add_embedding_length, HIDDEN),
        (writer.add_feed_forward_length, INNER),
        (writer.add_block_count, 2),
        (writer.add_head_count, HEADS),
        (writer.add_head_count_kv, KV),
        (writer.add_context_length, 64),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_rope_freq_base, 10000.0),
        (writer.add_rope_dimension_count, HIDDEN // HEADS),
    ):
        add(value)
    tokens = ["t", "0", "1", *(f"t{i}" for i in range(27)), "<s>", "</s>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 30 + [3, 3])
    writer.add_token_merges(["t 0", "t 1"])
    for add in (writer.add_unk_token_id, writer.add_pad_token_id, writer.add_bos_token_id):
        add(30)
    writer.add_eos_token_id(31)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages }}")
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (32, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for block in range(2):
        width = HIDDEN // HEADS * KV
        shapes |= {
            f"blk.{block}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (HIDDEN,),
                "attn_q": (HIDDEN, HIDDEN),
                "attn_k": (width, HIDDEN),
                "attn_v": (width, HIDDEN),
                "attn_output": (HIDDEN, HIDDEN),
                "ffn_norm": (HIDDEN,),
                "ffn_gate": (INNER, HIDDEN),
                "ffn_up": (INNER, HIDDEN),
                "ffn_down": (HIDDEN, INNER),
            }.items()
        }
        if family == "qwen2":
            shapes |= {f"blk.{block}.attn_{x}.bias": (HIDDEN if x == "q" else width,) for x in "qkv"}
    held = {}
    quantised = getattr(gguf.GGMLQuantizationType, kind)
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 2:
            packed = gguf.quantize(values, quantised)
            writer.add_tensor(name, packed, raw_dtype=quantised)
            values = gguf.dequantize(packed, quantised).reshape(shape)
        else:
            writer.add_tensor(name, values)
        held[name] = values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def test_a_llama_is_read_by_our_own_reader(tmp_path: Path) -> None:
    held = write_gguf(tmp_path / "m.gguf")
    assert detect(tmp_path / "m.gguf") == ("gguf", "a GGUF file (llama: 15 Q8_0)")
    bring(tmp_path / "m.gguf", tmp_path / "out", "gguf")
    manifest, made = verify(tmp_path / "out"), Checkpoint(tmp_path / "out")
    assert manifest.details["reader"] == "tailcut"
    assert "dequantised model, not of its original" in manifest.notes[0]
    assert np.array_equal(made.read("model.layers.1.mlp.up_proj.weight"), held["blk.1.ffn_up.weight"])
    q, dim = held["blk.0.attn_q.weight"], HIDDEN // HEADS
    halves = q.reshape(HEADS, dim // 2, 2, HIDDEN).swapaxes(1, 2).reshape(HIDDEN, HIDDEN)
    assert np.array_equal(made.read("model.layers.0.self_attn.q_proj.weight"), halves)


def test_other_families_go_through_transformers(tmp_path: Path, tailcut: Tailcut) -> None:
    held = write_gguf(tmp_path / "m.gguf", "qwen2", "Q4_0", pre="qwen2")
    code, shown, errors = tailcut("import", tmp_path / "m.gguf", "-o", tmp_path / "out")
    assert code == 0, errors
    assert "14 matrices" in shown
    assert verify(tmp_path / "out").details["reader"] == "transformers"
    made = Checkpoint(tmp_path / "out")
    assert made.config["model_type"] == "qwen2"
    assert "quantization_config" not in made.config
    for ours, theirs in (("mlp.up_proj.weight", "ffn_up.weight"), ("self_attn.q_proj.weight", "attn_q.weight")):
        np.testing.assert_array_equal(made.read(f"model.layers.0.{ours}"), held[f"blk.0.{theirs}"])
    code, _, errors = tailcut("export", tmp_path / "out", "-o", tmp_path / "p")
    assert code == 0, errors


def test_a_family_that_nobody_reads_is_named(tmp_path: Path, tailcut: Tailcut) -> None:
    write_gguf(tmp_path / "m.gguf", "rwkv9")
    code, _, errors = tailcut("import", tmp_path / "m.gguf", "-o", tmp_path / "out")
    assert code == 2
    assert "neither tailcut nor transformers reads this GGUF file" in errors
    assert not (tmp_path / "out").exists()


def header(*parts: bytes, tensors: int = 0, keys: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + b"".join(parts)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(*sizes: int, kind: int = 0, offset: int = 0, name: str = "w") -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


HOSTILE = {
    "not a GGUF file of version": b"GGUF" + struct.pack("<IQQ", 77, 0, 0),
    "beyond the end": b"GGUF" + struct.pack("<I", 3),
    "tensors, at most": header(tensors=1 << 60, keys=0),
    "metadata keys, at most": header(keys=1 << 60),
    "longer than it can be": header(struct.pack("<Q", 1 << 62)),
    "unknown type 99": header(text("k") + struct.pack("<I", 99)),
    "goes beyond the end": header(text("k") + struct.pack("<IIQ", 9, 0, 1 << 60)),
    "more than the file has room for": header(text("k") + struct.pack("<IIQ", 9, 8, 1 << 60)),
    "array of the unknown type": header(text("k") + struct.pack("<IIQ", 9, 9, 3)),
    "appears twice": header(*[text("k") + struct.pack("<IB", 0, 1)] * 2, keys=2),
    "an alignment of 0": header(text("general.alignment") + struct.pack("<II", 4, 0)),
    "does not fit the": header(entry(1 << 40, 1 << 40), tensors=1, keys=0) + b"\0" * 64,
    "does not fit the file": header(entry(4, offset=1 << 62), tensors=1, keys=0) + b"\0" * 64,
    "or appears twice": header(entry(4), entry(4), tensors=2, keys=0) + b"\0" * 96,
    "has 9 sizes": header(entry(*[1] * 9), tensors=1, keys=0),
    "unknown type 4096": header(entry(4, kind=4096), tensors=1, keys=0) + b"\0" * 64,
    "of sizes [33] (Q8_0)": header(entry(33, kind=8), tensors=1, keys=0) + b"\0" * 96,
}


@pytest.mark.parametrize("sentence", HOSTILE)
def test_hostile_headers_are_refused(sentence: str, tmp_path: Path, tailcut: Tailcut) -> None:
    (tmp_path / "m.gguf").write_bytes(HOSTILE[sentence])
    code, shown, errors = tailcut("import", tmp_path / "m.gguf", "-o", tmp_path / "out")
    assert code == 2
    assert sentence in errors
    assert "Traceback" not in shown + errors
    assert not (tmp_path / "out").exists()


def test_flipped_bytes_never_end_in_anything_but_a_sentence(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    whole, path = (tmp_path / "m.gguf").read_bytes(), tmp_path / "f.gguf"
    rng = random.Random(0)  # noqa: S311  (a test)
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(min(len(whole), 2500))] = rng.choice((0, 1, 127, 128, 255))
        path.write_bytes(damaged[: rng.choice((len(damaged), rng.randrange(24, len(damaged))))])
        try:
            found = read_header(path)
        except InputError:
            continue
        assert sum(tensor.size_bytes for tensor in found.tensors.values()) >= 0


def test_a_type_that_cannot_be_dequantised_is_named(tmp_path: Path, tailcut: Tailcut) -> None:
    """GGUF knows integer tensors, the gguf package decodes none of them."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("blk.0.ffn_up.weight", np.ones((32, 32), np.int32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    code, shown, errors = tailcut("inspect", tmp_path / "m.gguf")
    assert code == 2
    assert "cannot be dequantised" in errors
    assert "Traceback" not in shown + errors
