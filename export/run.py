"""HF directory -> ONNX package: build, check the structure, compare with torch, then move into place.

A package holds `model.onnx`, `fused.onnx` where the family allows it, their `model.onnx.data`, the tokenizer's files,
`config.json`, `generation_config.json` and `manifest.json`. Activations are float32 throughout (ONNX Runtime has no
bfloat16 matrix product on CPUs); matrices are stored as `weights` and `head` say, fused.onnx's cache as `kv_cache` says.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx

from tailcut import __version__, plugins
from tailcut.allocation import LayerPlan
from tailcut.checkpoint import Checkpoint
from tailcut.errors import InputError
from tailcut.export.blocks import Emitter
from tailcut.export.check import check_package
from tailcut.export.decoder import OPSET, build_decoder
from tailcut.export.forms import Layout
from tailcut.export.fused import build_fused, why_not
from tailcut.export.graph import DataFile, Graph
from tailcut.export.layouts import Linears, Storage
from tailcut.export.sizes import facts
from tailcut.export.spec import DecoderSpec
from tailcut.export.targets import OWN, Asked, Target
from tailcut.export.targets import load as load_target
from tailcut.export.uneven import with_own_shapes
from tailcut.export.weights import Weights
from tailcut.files import new_directory
from tailcut.kernels.package import DATA_NAME, FUSED_NAME, MODEL_NAME
from tailcut.manifest import Manifest, RealisedLayer, file_entries, try_manifest, write_manifest
from tailcut.progress import Reporter, silent
from tailcut.quantised import CachePrecision, HeadPrecision, Precision
from tailcut.shapes import differs
from tailcut.sidecar import Sidecars, open_sidecars

FAMILIES: Final = "tailcut.export.families"
SIDE_FILES: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
Details = Mapping[str, str | int | float | bool | None]
_STAGES: Final = ("build", "check structure", "compare with torch", "hash")


@dataclass(frozen=True, slots=True)
class Source:
    """What is exported: the checkpoint, what it describes, its manifest if it has one, and the integers it keeps."""

    checkpoint: Checkpoint
    spec: DecoderSpec
    manifest: Manifest | None
    sidecars: Sidecars

    @property
    def weights(self) -> Weights:
        return Weights(self.checkpoint, self.spec)

    @property
    def plans(self) -> dict[str, LayerPlan]:
        """What the source's manifest says each matrix was cut by."""
        return {name: layer.plan for name, layer in self.manifest.layers.items()} if self.manifest else {}


def export(
    model_dir: Path,
    out: Path,
    *,
    target: str = OWN,
    layout: Layout | None = None,
    weights: Precision = "float32",
    head: HeadPrecision | None = None,
    activation_bits: int = 8,
    kv_cache: CachePrecision | None = None,
    check: bool = True,
    overwrite: bool = False,
    report: Reporter = silent,
) -> Manifest:
    """Write the package `out`; a failed check raises InputError and leaves `out` as it was.

    target: who opens it (`export.targets`), which chooses the layout where none is given.
    weights: how the matrices are rounded; those that the directory holds as integers keep them. head: the same for output head and token embedding; None follows the weights,
    but gives int4 weights an int8 head. activation_bits: 8 or 16, how the kernels round the activations of int8 and int4
    matrices. kv_cache: how fused.onnx keeps keys and values; None is float32 beside float32 weights, else float16.
    """
    chosen = load_target(target).settle(Asked(layout, weights, head, activation_bits, kv_cache))
    return export_as(target, chosen, model_dir, out, check=check, overwrite=overwrite, report=report)


def export_as(
    target: str,
    chosen: Storage,
    model_dir: Path,
    out: Path,
    *,
    check: bool = True,
    overwrite: bool = False,
    report: Reporter = silent,
) -> Manifest:
    """`export` of what a target has settled already."""
    reader = load_target(target)
    source = open_source(model_dir)
    require_fit(target, reader, source.spec)
    with new_directory(out, overwrite=overwrite) as directory:
        report("export", 0, len(_STAGES), _STAGES[0])
        linears = write_decoder(source, directory, chosen)
        copy_side_files(model_dir, directory)
        reader.finish(directory, source.spec)
        report("export", 1, len(_STAGES), _STAGES[1])
        check_structure(directory / MODEL_NAME)
        report("export", 2, len(_STAGES), _STAGES[2])
        parity = check_package(model_dir, directory, source.spec, chosen, source.sidecars) if check else {}
        report("export", 3, len(_STAGES), _STAGES[3])
        made: Details = {"variant": reader.VARIANT, "target": target, "opset": OPSET, "checked": check}
        details: Details = {**made, **facts(linears), **parity}
        manifest = package_manifest(source, directory, block_layers(linears), details)
        write_manifest(manifest, directory)
    report("export", len(_STAGES), len(_STAGES), str(out))
    return manifest


def require_fit(name: str, target: Target, spec: DecoderSpec) -> None:
    """InputError if a target's readers cannot run this decoder, or want another exporter."""
    if target.VARIANT != "onnx":
        raise InputError(f"target {name} is the {target.VARIANT} variant, which `export.static` writes")
    if reason := target.unfit(spec):
        raise InputError(f"--target {name} cannot run this model: {reason}")


def open_source(model_dir: Path) -> Source:
    """Read config and headers; InputError names an unknown family or a missing file."""
    checkpoint = Checkpoint(model_dir)
    spec = describe(checkpoint.config, model_dir)
    manifest = try_manifest(model_dir)
    return Source(checkpoint, spec, manifest, open_sidecars(model_dir, manifest))


def describe(config: Mapping[str, object], model_dir: Path) -> DecoderSpec:
    """The decoder that a config describes, by the family file of its `model_type`."""
    family = str(config.get("model_type", ""))
    known = plugins.names(FAMILIES)
    if family.replace("_", "-") not in known:
        raise InputError(f"{model_dir}: model type {family!r} is not exported; these are: {', '.join(known)}")
    spec = plugins.load(FAMILIES, family).describe(config)
    if not isinstance(spec, DecoderSpec):
        raise TypeError(f"{family}: describe must return a DecoderSpec")
    if spec.heads % spec.kv_heads:
        raise InputError(f"config.json: {spec.heads} heads cannot share {spec.kv_heads} key/value heads evenly")
    return with_own_shapes(spec, config) if differs(config) else spec


def write_decoder(source: Source, directory: Path, storage: Storage) -> Linears:
    """Write model.onnx, fused.onnx where the family allows it, and their data; what the matrices became."""
    with DataFile(directory / DATA_NAME) as data:
        graph = Graph(data, OPSET)
        linears = Linears(graph, source.weights, storage, source.plans, source.sidecars)
        write_model(build_decoder(Emitter(graph, source.weights, linears, source.spec)), directory / MODEL_NAME)
        if why_not(source.spec, storage) is None:
            fused = Graph(data, OPSET)
            emitter = Emitter(fused, source.weights, linears.over(fused), source.spec)
            write_model(build_fused(emitter), directory / FUSED_NAME)
    return linears


def block_layers(linears: Linears) -> dict[str, RealisedLayer]:
    """What each matrix of the blocks became, in model order."""
    return {name: linears.realised[name] for name in linears.weights.spec.linears}


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Serialise a graph, byte for byte the same every time."""
    path.write_bytes(model.SerializeToString(deterministic=True))


def check_structure(path: Path, *, full: bool = True) -> None:
    """ONNX's own checker, with shape inference if `full`; a failure is a fault in tailcut, not in the input."""
    onnx.checker.check_model(str(path), full_check=full)


def copy_side_files(model_dir: Path, directory: Path) -> None:
    """Tokenizer, configs and chat template, as they are."""
    for name in SIDE_FILES:
        if (model_dir / name).is_file():
            shutil.copyfile(model_dir / name, directory / name)


def package_manifest(
    source: Source,
    directory: Path,
    realised: Mapping[str, RealisedLayer],
    details: Details,
) -> Manifest:
    """The manifest of a finished package directory."""
    before = source.manifest
    return Manifest(
        kind="package",
        made_by=f"tailcut {__version__} export",
        source={"model": source.checkpoint.fingerprint(), "name": source.checkpoint.directory.resolve().name},
        layers=dict(realised),
        total_parameters=source.checkpoint.total_parameters(),
        files=file_entries(directory),
        provenance=dict(before.provenance) if before else {},
        details={"family": source.spec.family, "precision": "float32"} | dict(details),
        notes=before.notes if before else (),
    )
