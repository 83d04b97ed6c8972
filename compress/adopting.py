"""A model directory that others made, as one of ours: zeros counted, the plan that follows from them, a manifest."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

from tailcut import __version__, plugins
from tailcut.allocation import Allocation, Dense, LayerPlan, LayerScores, Pattern, Unstructured, parse_nm
from tailcut.compress.importers import Brought, Importer, ImportOptions
from tailcut.compress.inspection import Inspection, MatrixFacts, inspect_directory
from tailcut.compress.packing import is_packed
from tailcut.errors import InputError
from tailcut.files import new_directory
from tailcut.manifest import MANIFEST_NAME, Manifest, RealisedLayer, file_entries, write_manifest
from tailcut.progress import Reporter, silent

FOLDER: Final = "tailcut.compress.importers"
FEW: Final = 0.05  # zeros that nobody cut: a 4-bit grid alone leaves up to 4.6 % in the demo models
_LOOSE: Final = 0.02  # more zeros than N:M asks for, and still N:M


def importers() -> dict[str, Importer]:
    """Every importer by the name of its format."""
    return {name: cast(Importer, plugins.load(FOLDER, name)) for name in plugins.names(FOLDER)}


def detect(source: Path) -> tuple[str, str] | None:
    """(format, what it is in a few words) of the importer that recognises `source`, None if none does."""
    if not source.exists():
        raise InputError(f"{source}: no such file or directory")
    found = ((name, importer.recognises(source)) for name, importer in importers().items())
    return next(((name, words) for name, words in found if words is not None), None)


def choose(source: Path, format_name: str | None) -> str:
    """The format to read `source` as: the one asked for, else the one that recognises it."""
    _refuse_own(source)
    if format_name is not None:
        if not source.exists():
            raise InputError(f"{source}: no such file or directory")
        return plugins.require(FOLDER, format_name)
    found = detect(source)
    if found is None:
        known = ", ".join(importers())
        raise InputError(f"{source}: no importer recognises it ({known}); `tailcut inspect` may say what it is")
    return found[0]


def bring(
    source: Path,
    out: Path,
    format_name: str,
    options: ImportOptions | None = None,
    *,
    overwrite: bool = False,
    report: Reporter = silent,
) -> Manifest:
    """Write `source` as the Hugging Face directory `out` with a manifest: all of it, or nothing."""
    importer = importers()[format_name]
    if importer.MAKES != "model":
        raise InputError(f"{source}: {format_name} gives {importer.MAKES}, not a model directory")
    if out.resolve() == source.resolve():
        raise InputError(f"{out}: an import is not written over its source; choose another output")
    with new_directory(out, overwrite=overwrite) as directory:
        brought = importer.bring_in(source, directory, options or ImportOptions(), report)
        manifest = manifest_of(directory, format_name, brought, report)
        write_manifest(manifest, directory)
    return manifest


def bring_scores(source: Path, format_name: str, options: ImportOptions, report: Reporter = silent) -> LayerScores:
    """The scores that `source` holds."""
    importer = importers()[format_name]
    brought = importer.bring_in(source, source, options, report)
    if brought.scores is None:
        raise InputError(f"{source}: {format_name} gives a model directory, not scores")
    return brought.scores


def manifest_of(directory: Path, format_name: str, brought: Brought, report: Reporter = silent) -> Manifest:
    """The manifest of a finished directory: zeros as they are counted there, plans as they follow from the zeros."""
    found = inspect_directory(directory, report)
    plans = {name: LayerPlan(pattern_of(facts), brought.bits.get(name)) for name, facts in found.layers.items()}
    layers = {name: RealisedLayer(plans[name], facts.shape, facts.zeros) for name, facts in found.layers.items()}
    return Manifest(
        kind="model",
        made_by=f"tailcut {__version__} import",
        source=brought.origin,
        layers=layers,
        total_parameters=found.total_parameters,
        files=file_entries(directory),
        provenance={"allocator": "counted zeros", "format": format_name},
        details={"imported_from": format_name, **brought.details},
        notes=brought.notes,
    )


def pattern_of(facts: MatrixFacts) -> Pattern:
    """What one matrix looks like it was cut to: N:M where every group obeys it and is full, else its share of zeros."""
    if facts.sparsity < FEW:
        return Dense()
    if facts.group is not None:
        pattern = parse_nm(facts.group)
        if facts.sparsity <= pattern.sparsity + _LOOSE:
            return pattern
    return Unstructured(facts.sparsity)


def allocation_of(found: Inspection | Manifest) -> Allocation:
    """The plan that follows from counted zeros, for `tailcut compress` of another copy of the same model."""
    if isinstance(found, Manifest):
        plans: Mapping[str, LayerPlan] = {name: layer.plan for name, layer in found.layers.items()}
    else:
        plans = {name: LayerPlan(pattern_of(facts)) for name, facts in found.layers.items()}
    return Allocation({name: replace(plan, bits=None) for name, plan in plans.items()}, {"allocator": "counted zeros"})


def _refuse_own(source: Path) -> None:
    where = source.parent if source.suffix == ".onnx" and source.is_file() else source
    if not (where / MANIFEST_NAME).is_file():
        return
    if any(where.glob("*.onnx")):
        raise InputError(f"{source}: is a package of tailcut's already; `tailcut convert` changes its layout")
    if is_packed(source):
        raise InputError(f"{source}: is a packed directory of tailcut's; `tailcut unpack` writes it plain")
