"""Targets of `tailcut export`: what each can be asked for, what it refuses, and the files that it adds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from tailcut.checkpoint import read_config
from tailcut.commands.export import Target as Choice
from tailcut.errors import InputError
from tailcut.export import targets
from tailcut.export.run import describe, export
from tailcut.export.spec import DecoderSpec
from tailcut.export.targets import Asked, genai, optimum
from tailcut.manifest import verify

SparseModel = Callable[..., Path]
TinyModel = Callable[..., Path]


@pytest.fixture
def spec(tiny_model: TinyModel) -> Callable[..., DecoderSpec]:
    """spec(family, **overrides) -> what the exporter knows of the tiny model."""

    def make(family: str = "llama", **overrides: object) -> DecoderSpec:
        directory = tiny_model(family, **overrides)
        return describe(read_config(directory), directory)

    return make


def test_the_command_line_offers_every_target() -> None:
    assert {choice.value for choice in Choice} == set(targets.names())


@pytest.mark.parametrize("name", targets.names())
def test_every_target_keeps_the_contract(name: str) -> None:
    target = targets.load(name)
    assert target.SUMMARY.endswith(".")
    assert len(target.SUMMARY) > 20
    assert target.LAYOUTS
    assert set(target.LAYOUTS) <= {"bitmask", "dense"}
    assert target.settle(Asked()).layout == target.LAYOUTS[0]
    for layout in ("bitmask", "dense"):
        if layout in target.LAYOUTS:
            assert target.settle(Asked(layout=layout)).layout == layout
        else:
            with pytest.raises(InputError, match=f"--target {name} reads the .* layout only"):
                target.settle(Asked(layout=layout))
    # only tailcut's own runtime knows the graph with the cache in place
    assert target.settle(Asked()).fused is (name == "tailcut")


@pytest.mark.parametrize("name", sorted({"onnxruntime", "optimum", "genai", "openvino", "web"}))
def test_a_cache_type_is_refused_where_no_graph_has_one(name: str) -> None:
    with pytest.raises(InputError, match=f"--kv-cache is about fused.onnx, which --target {name} does not have"):
        targets.load(name).settle(Asked(kv_cache="float16"))


def test_halves_are_kept_where_the_bitmask_is_read_and_refused_elsewhere() -> None:
    for name in ("onnxruntime", "optimum", "genai", "web"):
        assert targets.load(name).settle(Asked(weights="float16")).layout == "bitmask"
    with pytest.raises(InputError, match="--target openvino reads float32 and integer matrices"):
        targets.load("openvino").settle(Asked(weights="bfloat16"))


@pytest.mark.parametrize("asked", [Asked(weights="int8"), Asked(head="int8"), Asked(kv_cache="float16")])
def test_deepsparse_takes_float32_only(asked: Asked) -> None:
    with pytest.raises(InputError, match="deepsparse target holds float32 weights only"):
        targets.load("deepsparse").settle(asked)


def test_target_and_variant_must_agree() -> None:
    assert targets.named(None, None) == targets.named(None, "onnx") == "tailcut"
    assert targets.named(None, "deepsparse") == targets.named("deepsparse", None) == "deepsparse"
    assert targets.named("genai", "onnx") == "genai"
    for target, variant in (("deepsparse", "onnx"), ("genai", "deepsparse"), ("tailcut", "deepsparse")):
        with pytest.raises(InputError, match=f"--target {target} is the .* variant, not --variant {variant}"):
            targets.named(target, variant)


def test_the_static_variant_is_not_written_as_a_dynamic_one(sparse_model: SparseModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="deepsparse is the deepsparse variant"):
        export(sparse_model(), tmp_path / "out", target="deepsparse")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_openvino_gets_no_functions_and_other_targets_keep_them(
    sparse_model: SparseModel, tmp_path: Path, weights: Any
) -> None:
    """Each package passed the comparison with torch after its target had finished it."""
    for name, own in (("onnxruntime", True), ("openvino", False)):
        manifest = export(sparse_model(), tmp_path / name, target=name, weights=weights)
        model = onnx.load(tmp_path / name / "model.onnx", load_external_data=False)
        assert bool(model.functions) is own
        assert any(entry.domain == "tailcut" for entry in model.opset_import) is own
        assert manifest.details["target"] == name
        assert manifest.details["checked"] is True
        assert manifest.details["layout"] == targets.load(name).LAYOUTS[0]
        assert not (tmp_path / name / "fused.onnx").exists()
        assert verify(tmp_path / name) == manifest


def test_genai_config_says_what_the_graph_is(sparse_model: SparseModel, tmp_path: Path) -> None:
    directory = sparse_model("gemma3_text")
    manifest = export(directory, tmp_path / "out", target="genai", check=False)
    stated = json.loads((tmp_path / "out" / "genai_config.json").read_bytes())
    assert "genai_config.json" in manifest.files
    model = stated["model"]
    assert (model["type"], model["vocab_size"], model["context_length"]) == ("gemma3_text", 258, 128)
    decoder = model["decoder"]
    assert (decoder["head_size"], decoder["num_key_value_heads"], decoder["num_hidden_layers"]) == (16, 2, 3)
    graph = onnx.load(tmp_path / "out" / decoder["filename"], load_external_data=False).graph
    inputs, outputs = ({value.name for value in side} for side in (graph.input, graph.output))
    blocks = range(decoder["num_hidden_layers"])
    past = {decoder["inputs"][f"past_{part}_names"] % index for part in ("key", "value") for index in blocks}
    present = {decoder["outputs"][f"present_{part}_names"] % index for part in ("key", "value") for index in blocks}
    assert inputs == past | {"input_ids", "attention_mask", "position_ids"}
    assert outputs == present | {"logits"}
    # the graph appends to its past; a shared buffer would be taken for text
    assert stated["search"]["past_present_share_buffer"] is False
    assert stated["search"]["do_sample"] is False
    assert "sliding_window" not in decoder  # the graph's own mask has it


def test_genai_names_every_family_or_calls_it_a_decoder(
    family: str, spec: Callable[..., DecoderSpec], tiny_model: TinyModel, tmp_path: Path
) -> None:
    found = spec(family)
    genai.finish(tmp_path, found)
    model = json.loads((tmp_path / "genai_config.json").read_bytes())["model"]
    assert model["type"] == (family if family in genai.TYPES else "decoder")
    assert (model["type"] == "decoder") == (family in ("phi3", "opt", "gpt2", "gpt_neox"))
    heads = ("num_attention_heads", "num_key_value_heads", "head_size", "num_hidden_layers")
    config = read_config(tiny_model(family))
    grouped = config.get("num_key_value_heads") or found.heads
    assert [model["decoder"][name] for name in heads] == [4, grouped, found.head_dim, 3]


def test_genai_takes_ids_from_the_generation_config_first(spec: Callable[..., DecoderSpec], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": 5, "bos_token_id": 4, "pad_token_id": null}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    genai.finish(tmp_path, spec())
    model = json.loads((tmp_path / "genai_config.json").read_bytes())["model"]
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (4, [7, 8], 257)


@pytest.mark.parametrize(("pad", "written"), [(8, 257), (9, 9)])
def test_genai_never_pads_with_an_end_token(
    spec: Callable[..., DecoderSpec], tmp_path: Path, pad: int, written: int
) -> None:
    """It hides pads at the ends of a prompt, so a prompt that ends with the end token would lose it."""
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [7, 8], "pad_token_id": pad}))
    genai.finish(tmp_path, spec())
    assert json.loads((tmp_path / "genai_config.json").read_bytes())["model"]["pad_token_id"] == written


@pytest.mark.parametrize("value", ['"</s>"', "-1", "[]", "[3, true]", "1.5"])
def test_genai_refuses_what_is_no_token(spec: Callable[..., DecoderSpec], tmp_path: Path, value: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"eos_token_id": {value}}}')
    with pytest.raises(InputError, match=r"eos_token_id is .*no token's id"):
        genai.finish(tmp_path, spec())
    assert not (tmp_path / "genai_config.json").exists()


def test_a_family_that_genai_has_no_name_for_is_a_decoder(spec: Callable[..., DecoderSpec], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    genai.finish(tmp_path, spec("gpt_neox"))
    assert json.loads((tmp_path / "genai_config.json").read_bytes())["model"]["type"] == "decoder"


def test_optimum_refuses_caches_whose_shape_it_would_guess_wrong(spec: Callable[..., DecoderSpec]) -> None:
    assert optimum.unfit(spec("llama")) is None
    assert optimum.unfit(spec("gemma3_text")) is None
    assert optimum.unfit(spec("gpt2")) is None
    assert "hidden / heads = 8" in str(optimum.unfit(spec("qwen3")))  # head_dim 16
    assert "as many key/value heads as heads" in str(optimum.unfit(spec("phi3")))


def test_a_model_that_a_target_cannot_run_leaves_no_output(tiny_model: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--target optimum cannot run this model: .*use --target onnxruntime"):
        export(tiny_model("qwen3"), tmp_path / "out", target="optimum")
    assert list(tmp_path.iterdir()) == []


def test_optimum_keeps_the_cache_on(spec: Callable[..., DecoderSpec], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"use_cache": false, "hidden_size": 32}')
    optimum.finish(tmp_path, spec())
    assert json.loads((tmp_path / "config.json").read_bytes()) == {"use_cache": True, "hidden_size": 32}
