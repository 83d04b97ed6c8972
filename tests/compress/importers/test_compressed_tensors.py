"""Checkpoints that the last compressed-tensors release with sparse compressors wrote are read back equal, bit for bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tailcut.checkpoint import Checkpoint, read_shard
from tailcut.compress.adopting import bring, detect
from tailcut.compress.importers.compressed_tensors import Modules, Settings
from tailcut.errors import InputError
from tailcut.manifest import verify

Golden = Callable[[str], Path]
Tailcut = Callable[..., tuple[int, str, str]]
CHECKPOINTS = {
    "bitmask_f32": "sparse-bitmask",
    "bitmask_f16": "sparse-bitmask",
    "bitmask_bf16": "sparse-bitmask",
    "two_four_f32": "sparse-24-bitmask",
    "two_four_f16": "sparse-24-bitmask",
    "two_four_bf16": "sparse-24-bitmask",
    "bitmask_int8": "sparse-bitmask, int-quantized",
    "two_four_fp8": "sparse-24-bitmask, float-quantized",
    "packed_int4": "pack-quantized",
}


def bits(array: np.ndarray[Any, Any]) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("folder", CHECKPOINTS)
def test_old_checkpoints_read_back_equal(folder: str, golden: Golden, tmp_path: Path) -> None:
    """Every tensor has the bits that the library itself decompresses."""
    source = golden(folder)
    assert detect(source) == ("compressed-tensors", f"a compressed-tensors checkpoint ({CHECKPOINTS[folder]})")
    bring(source, tmp_path / "m", "compressed-tensors")
    manifest = verify(tmp_path / "m")
    made, wanted = Checkpoint(tmp_path / "m"), read_shard(source.parent / f"{folder}.expected")
    assert set(made.names) == set(wanted)
    assert {name: bits(made.read(name)) for name in wanted} == {name: bits(array) for name, array in wanted.items()}
    assert (
        not {"quantization_config", "sparsity_config"} & json.loads((tmp_path / "m" / "config.json").read_text()).keys()
    )
    kinds = {layer.plan.pattern.kind for layer in manifest.layers.values()}
    assert kinds == ({"nm"} if folder.startswith("two_four") else {"unstructured"})
    assert bool(manifest.notes) == (CHECKPOINTS[folder].count("quantized") > 0)


def test_tensors_of_odd_sizes_and_values(golden: Golden) -> None:
    """NaN, infinity, integers, all zeros, no zeros, widths that fill no byte, groups of four over the ends of rows."""
    folder = golden("odd")
    (folder / "config.json").write_text("{}")
    wanted = read_shard(folder.parent / "odd.expected")
    modules = Modules(Checkpoint(folder), Settings("sparse-bitmask", "dense", ()))
    assert sorted(name for names in modules.names().values() for name in names) == sorted(wanted)
    for name, array in wanted.items():
        assert bits(modules.read(name)) == bits(array), name
        assert modules.shape(name) == array.shape


def test_an_import_goes_on_to_a_package(golden: Golden, tmp_path: Path, tailcut: Tailcut) -> None:
    code, shown, _ = tailcut(
        "import", golden("two_four_f32"), "-o", tmp_path / "m", "--allocation", tmp_path / "plan.json"
    )
    assert code == 0
    assert "7 matrices (7 2:4)" in shown
    assert (
        json.loads((tmp_path / "plan.json").read_text())["plans"]["model.layers.0.mlp.up_proj"]["pattern"]["keep"] == 2
    )
    code, _, errors = tailcut("export", tmp_path / "m", "-o", tmp_path / "p")
    assert code == 0, errors


def test_parts_may_lie_in_other_shards_and_old_names_are_read(golden: Golden, tmp_path: Path) -> None:
    source = golden("bitmask_f32")
    tensors = load_file(source / "model.safetensors")
    first = {name: array for name, array in tensors.items() if "bitmask" in name or "norm" in name}
    rest = {name: array for name, array in tensors.items() if name not in first}
    (source / "model.safetensors").unlink()
    save_file(first, source / "a.safetensors")
    save_file(rest, source / "b.safetensors")
    index = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(rest, "b.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = json.loads((source / "config.json").read_text())
    config["compression_config"] = config.pop("quantization_config")
    (source / "config.json").write_text(json.dumps(config))
    bring(source, tmp_path / "m", "compressed-tensors")
    made, wanted = Checkpoint(tmp_path / "m"), read_shard(source.parent / "bitmask_f32.expected")
    assert all(bits(made.read(name)) == bits(array) for name, array in wanted.items())


def change(source: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    tensors = {name: np.array(array) for name, array in load_file(source / "model.safetensors").items()}
    edit(tensors)
    save_file(tensors, source / "model.safetensors")


UP = "model.layers.0.mlp.up_proj"
HOSTILE: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "a popcount too high": ("mask names", lambda t: t[f"{UP}.bitmask"].__setitem__((0, 0), 255)),
    "too few values": ("mask names", lambda t: t.__setitem__(f"{UP}.compressed", t[f"{UP}.compressed"][:-1])),
    "huge sizes": ("which no weight has", lambda t: t.__setitem__(f"{UP}.shape", np.array([1 << 40, 1 << 40]))),
    "large sizes": ("does not belong to", lambda t: t.__setitem__(f"{UP}.shape", np.array([1 << 19, 1 << 20]))),
    "negative sizes": ("which no weight has", lambda t: t.__setitem__(f"{UP}.shape", np.array([-24, -16]))),
    "sizes that are floats": ("one or two integers", lambda t: t.__setitem__(f"{UP}.shape", np.ones(2, np.float32))),
    "three sizes": ("one or two integers", lambda t: t.__setitem__(f"{UP}.shape", np.ones(3, np.int64))),
    "a mask of another type": (
        "does not belong to",
        lambda t: t.__setitem__(f"{UP}.bitmask", t[f"{UP}.bitmask"].view(np.int8)),
    ),
    "a short mask": ("does not belong to", lambda t: t.__setitem__(f"{UP}.bitmask", t[f"{UP}.bitmask"][:-1])),
    "no mask": ("has no bitmask", lambda t: t.pop(f"{UP}.bitmask")),
    "wrong row offsets": ("row offsets", lambda t: t[f"{UP}.row_offsets"].__setitem__(1, 7)),
    "stored twice": ("both dense and as", lambda t: t.__setitem__(f"{UP}.weight", np.ones((24, 16), np.float32))),
    "a lost matrix": ("no tensor for", lambda t: [t.pop(f"{UP}.{p}") for p in ("bitmask", "compressed", "shape")]),
    "NaN weights": ("NaN or infinite", lambda t: t[f"{UP}.compressed"].__setitem__(0, np.nan)),
    "marlin": ("marlin-24", lambda t: t.__setitem__(f"{UP}.scale_packed", np.ones(3, np.float32))),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_checkpoints_are_refused(what: str, golden: Golden, tmp_path: Path) -> None:
    sentence, edit = HOSTILE[what]
    source = golden("bitmask_f32")
    change(source, edit)
    with pytest.raises(InputError, match=sentence):
        bring(source, tmp_path / "m", "compressed-tensors")
    assert not (tmp_path / "m").exists()
    assert not list(tmp_path.glob("m.tmp*"))


def test_bits_beyond_the_last_column_and_half_of_24(golden: Golden, tmp_path: Path) -> None:
    source = golden("two_four_f32")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"]["sparsity_config"]["format"] = "sparse-bitmask"
    (source / "config.json").write_text(json.dumps(config))
    bring(source, tmp_path / "m", "compressed-tensors")  # a mask is a mask
    source = golden("odd")
    shutil.rmtree(tmp_path / "m")
    (source / "config.json").write_text("{}")
    change(source, lambda t: t["mixed.float32.3x5.bitmask"].__ior__(np.uint8(128)))
    with pytest.raises(InputError, match="bits beyond column 5"):
        Modules(Checkpoint(source), Settings("sparse-bitmask", "dense", ())).read("mixed.float32.3x5.weight")
    with pytest.raises(InputError, match="not half of"):
        Modules(Checkpoint(source), Settings("sparse-24-bitmask", "dense", ())).read("full.float32.5x8.weight")


QUANTISED: dict[str, tuple[str, str, Callable[[dict[str, Any]], Any]]] = {
    "scales of another size": (
        "bitmask_int8",
        "are not read",
        lambda t: t.__setitem__(f"{UP}.weight_scale", np.ones((5, 1), np.float32)),
    ),
    "groups that do not divide": (
        "packed_int4",
        "do not divide",
        lambda t: t.__setitem__(f"{UP}.weight_scale", np.ones((24, 3), np.float32)),
    ),
    "infinite scales": (
        "bitmask_int8",
        "not finite",
        lambda t: t.__setitem__(f"{UP}.weight_scale", np.full((24, 1), np.inf, np.float32)),
    ),
    "words of another count": (
        "packed_int4",
        "words for 24 x 16",
        lambda t: t.__setitem__(f"{UP}.weight_packed", t[f"{UP}.weight_packed"][:, :-1]),
    ),
    "packed zero points": (
        "packed_int4",
        "zero points",
        lambda t: t.__setitem__(f"{UP}.weight_zero_point", np.ones((3, 2), np.int32)),
    ),
    "groups that do not exist": (
        "packed_int4",
        "groups of its columns",
        lambda t: t.__setitem__(f"{UP}.weight_g_idx", np.full(16, 9, np.int32)),
    ),
}


@pytest.mark.parametrize("what", QUANTISED)
def test_hostile_integers_are_refused(what: str, golden: Golden, tmp_path: Path) -> None:
    folder, sentence, edit = QUANTISED[what]
    source = golden(folder)
    if folder == "packed_int4":
        change(source, edit)
    else:  # bfloat16 scales: numpy's safetensors has no such type
        from tailcut.checkpoint import write_shard

        tensors: dict[str, Any] = {
            name: np.array(array) for name, array in read_shard(source / "model.safetensors").items()
        }
        edit(tensors)
        write_shard(source / "model.safetensors", tensors)
    with pytest.raises(InputError, match=sentence):
        bring(source, tmp_path / "m", "compressed-tensors")


CONFIGS = {
    "is not read": {"quant_method": "compressed-tensors", "format": "marlin-24"},
    "'os:system' is not read": {"quant_method": "compressed-tensors", "sparsity_config": {"format": "os:system"}},
    "rotated": {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"a": {}}}},
    "must be objects": {"quant_method": "compressed-tensors", "config_groups": [1]},
}


@pytest.mark.parametrize("sentence", CONFIGS)
def test_formats_that_are_not_read_are_named(sentence: str, golden: Golden, tmp_path: Path) -> None:
    source = golden("bitmask_f32")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": CONFIGS[sentence]}))
    with pytest.raises(InputError, match=sentence):
        bring(source, tmp_path / "m", "compressed-tensors")


def test_shards_that_are_missing_elsewhere_or_pickled(golden: Golden, tmp_path: Path, tailcut: Tailcut) -> None:
    source = golden("bitmask_f32")
    names = list(load_file(source / "model.safetensors"))
    index = source / "model.safetensors.index.json"
    for target, sentence in (
        ("../../escape.safetensors", "leaves its directory"),
        ("missing.safetensors", "missing.safetensors"),
    ):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(names, target)}))
        code, _, errors = tailcut("import", source, "-o", tmp_path / "m")
        assert code == 2
        assert sentence in errors
        assert "Traceback" not in errors
    index.write_text(json.dumps({"weight_map": dict.fromkeys([*names, "ghost.weight"], "model.safetensors")}))
    assert (
        "ghost.weight should be in model.safetensors and is in no shard"
        in tailcut("import", source, "-o", tmp_path / "m")[2]
    )
    index.unlink()
    (source / "model.safetensors").unlink()
    (source / "model.safetensors").symlink_to("model.safetensors")  # a loop
    assert tailcut("import", source, "-o", tmp_path / "m")[0] == 2
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "only pickled weights" in tailcut("import", source, "-o", tmp_path / "m")[2]
    assert not (tmp_path / "m").exists()
