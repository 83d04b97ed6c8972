"""Options that several commands take, each defined once: a frozen value whose fields are flags.

typer reads a command's options from its signature. `expanded` writes that signature: a parameter that is a dataclass stands
for its fields, and the command gets the value. None always means that the flag was not given.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from tailcut.recipe import SHAPING

if TYPE_CHECKING:
    from tailcut.compress.calibration import Calibration


@dataclass(frozen=True, slots=True)
class Planning:
    """How much is cut, and how layers share it: the flags of `tailcut allocate`, and of `tailcut run` before it."""

    sparsity: Annotated[
        float | None, typer.Option(help="Fraction of zeros over the linears of the decoder blocks, in [0, 1).")
    ] = None
    pattern: Annotated[
        str | None,
        typer.Option(help="N:M with N weights kept of M, such as 2:4: of uniform, or the mean of nm-mixed, auto, evo."),
    ] = None
    allocator: Annotated[
        str | None,
        typer.Option(
            help="How layers share the budget; `tailcut allocate --list` explains each. "
            "[default: alpha; latency with --speedup]"
        ),
    ] = None
    metric: Annotated[
        str | None,
        typer.Option(help="alpha: which of the measured scores [default: alpha_peak]; global: magnitude or wanda."),
    ] = None
    tau: Annotated[
        float | None,
        typer.Option(help="alpha: spread between layers. [default: 0.1 up to 50 %, 0.3 at 70 %, 0.2 from 80 % on]"),
    ] = None
    granularity: Annotated[
        str | None, typer.Option(help="alpha, als: block, matrix, or mixed (a block's budget shared out by matrix).")
    ] = None
    spread: Annotated[
        float | None, typer.Option(help="owl, dlp: half the width, in sparsity, of the range over blocks.")
    ] = None
    beta: Annotated[float | None, typer.Option(help="atp: how much more each block loses than the one before.")] = None
    compat: Annotated[
        bool | None, typer.Option("--compat/--no-compat", help="owl, dlp, atp: unweighted and unclipped, as published.")
    ] = None
    solver: Annotated[str | None, typer.Option(help="als: lp (as published) or qp.")] = None
    bounds: Annotated[
        tuple[float, float] | None, typer.Option(help="als: least and greatest sparsity.", metavar="LOW HIGH")
    ] = None
    step: Annotated[float | None, typer.Option(help="als: sparsities are multiples of this.")] = None
    group: Annotated[int | None, typer.Option(help="nm-mixed, auto, evo: M of N:M. [default of nm-mixed: 8]")] = None
    allow_dense: Annotated[
        bool | None,
        typer.Option("--allow-dense/--no-allow-dense", help="With N:M patterns that differ: layers may lose nothing."),
    ] = None
    bits: Annotated[
        float | None, typer.Option(help="Mean bits a weight, beside any allocator; auto and evo search them.")
    ] = None
    bit_choices: Annotated[
        str | None, typer.Option(help="Bits a layer may get, comma-separated. [default: 8,4,3,2]")
    ] = None
    bit_tau: Annotated[
        float | None, typer.Option(help="Spread of the bits; 0 gives all layers the same. [default: 0.3]")
    ] = None
    speedup: Annotated[
        float | None, typer.Option(help="Decode speed over dense to reach, in place of a sparsity; with --cost.")
    ] = None
    cost: Annotated[Path | None, typer.Option(help="What products cost here, from `tailcut cost`.")] = None
    cap: Annotated[float | None, typer.Option(help="No matrix loses more than this fraction. [default: 0.99]")] = None
    minutes: Annotated[float | None, typer.Option(help="auto, evo: time to take. [default: 10]")] = None
    evaluations: Annotated[
        int | None,
        typer.Option(help="auto, evo: plans to measure, in place of minutes; the result is then always the same."),
    ] = None

    @property
    def given(self) -> dict[str, Any]:
        """The flags that were given, by name."""
        return _given(self)

    @property
    def shaping(self) -> dict[str, Any]:
        """Those of them that `compress.allocators.Settings` takes under the same name."""
        return {name: value for name, value in self.given.items() if name in SHAPING}


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """What runs through the model while it is measured, searched or cut."""

    calibration: Annotated[
        str | None,
        typer.Option(
            help="Text, where any is needed: demo (packaged prose), a .txt or .jsonl file, or datasets:NAME from the hub. "
            "[default: demo]"
        ),
    ] = None
    samples: Annotated[int | None, typer.Option(help="Calibration sequences. [default: 32]")] = None
    seqlen: Annotated[int | None, typer.Option(help="Tokens a calibration sequence; at most 2048. [default: 512]")] = (
        None
    )
    seed: Annotated[
        int | None, typer.Option(help="Seed of the calibration windows and of everything else random. [default: 0]")
    ] = None

    @property
    def given(self) -> dict[str, Any]:
        """The flags that were given, by name."""
        return _given(self)

    @property
    def wanted(self) -> "Calibration":
        """What is to be drawn; flags that were not given are `Calibration`'s own defaults."""
        from tailcut.compress.calibration import Calibration

        return Calibration(
            **{"source" if name == "calibration" else name: value for name, value in _given(self).items()}
        )


def _given(group: Any) -> dict[str, Any]:  # noqa: ANN401  (any dataclass of flags)
    values = {item.name: getattr(group, item.name) for item in fields(group)}
    return {name: value for name, value in values.items() if value is not None}


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of a dataclass type are on the command line that type's fields, in their place."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if is_dataclass(kind) and isinstance(kind, type)}

    def parameters() -> Iterator[Parameter]:
        for name, parameter in signature(command).parameters.items():
            if name not in groups:
                yield parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name])
                continue
            flags = get_type_hints(groups[name], include_extras=True)
            for item in fields(groups[name]):
                yield Parameter(item.name, Parameter.KEYWORD_ONLY, default=item.default, annotation=flags[item.name])

    @wraps(command)
    def call(**given: Any) -> None:  # noqa: ANN401  (whatever typer parsed)
        values = {
            name: kind(**{item.name: given.pop(item.name) for item in fields(kind)}) for name, kind in groups.items()
        }
        command(**values, **given)

    listed = list(parameters())
    vars(call)["__signature__"] = Signature(listed)
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in listed}
    return call
