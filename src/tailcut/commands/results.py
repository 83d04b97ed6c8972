"""`tailcut results`: what was ever measured, kept in one append-only file and asked by model, machine, engine, date."""

import csv
import io
import json as jsonlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailcut import codec
from tailcut.commands._options import expanded
from tailcut.commands._store import StoreFile
from tailcut.errors import InputError
from tailcut.files import require_absent, write_file

if TYPE_CHECKING:
    from tailcut.bench.store import Row

app = typer.Typer(no_args_is_help=True, help="Recorded results: add, list, show, history, export.")

Model = Annotated[str | None, typer.Option(help="Of this model only.")]
MachineStart = Annotated[str | None, typer.Option(help="Of this machine only: its fingerprint, or how it begins.")]
Engine = Annotated[str | None, typer.Option(help="Of this engine only.")]
Since = Annotated[str | None, typer.Option(help="From a date (2026-11-01) or a number of days ago (7d) on.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command()
@expanded
def add(
    files: Annotated[list[Path], typer.Argument(help="Results of `tailcut bench`, or directories of `tailcut run`.")],
    stored: StoreFile,
    model: Annotated[
        str | None, typer.Option(help="The model's name. [default: as the package's manifest says]")
    ] = None,
    json: Json = False,
) -> None:
    """Record results; what is recorded already is not recorded again."""
    from tailcut.results import BenchResult

    store, found = stored.open(), []
    for path in files:
        result = codec.load(BenchResult, path / "result.json" if path.is_dir() else path)
        found.append((path, store.append((result,), model or _model_of(path))))
    if json:
        print(jsonlib.dumps([{"file": str(path), "new": bool(new)} for path, new in found], indent=1))
        return
    for path, new in found:
        print(f"{path}: {'recorded' if new else 'was recorded before'}")


def _model_of(path: Path) -> str | None:
    """The name in the manifest of the package or model beside a result."""
    from tailcut.manifest import try_manifest

    base = path if path.is_dir() else path.parent
    for name in ("package", "model", "dense"):
        manifest = try_manifest(base / name)
        if manifest and manifest.source.get("name"):
            return manifest.source["name"]
    return None


@app.command("list")
@expanded
def list_results(
    stored: StoreFile, model: Model = None, machine: MachineStart = None, engine: Engine = None, since: Since = None,
    json: Json = False,
) -> None:  # fmt: skip
    """One line a measurement, oldest first."""
    rows = _rows(stored, model, machine, engine, since)
    if json:
        print(jsonlib.dumps([_flat(row) for row in rows], indent=1))
        return
    for row in rows:
        print(_line(row))
    if not rows:
        print("nothing recorded fits")


@app.command()
@expanded
def show(
    number: Annotated[int, typer.Argument(help="The result's number, as listed.")],
    stored: StoreFile,
    json: Json = False,
) -> None:
    """One result: its measurements, or with --json everything that was recorded, raw samples too."""
    store = stored.open()
    result = store.raw(number)
    if json:
        print(codec.to_json(result), end="")
        return
    for row in (row for row in store.rows() if row.id == number):
        for name, value in _flat(row).items():
            print(f"{name:<18} {_clean(value)}")


@app.command()
@expanded
def history(
    stored: StoreFile,
    out: Annotated[Path, typer.Option("--output", "-o", help="The directory for the pictures.")],
    model: Model = None, machine: MachineStart = None, engine: Engine = None, since: Since = None,
    json: Json = False,
) -> None:  # fmt: skip
    """One SVG a model and machine: speed and perplexity over time. Machines are never drawn together."""
    from tailcut.bench.sweep_plots import history as drawn

    rows = [row for row in _rows(stored, model, machine, engine, since) if row.measured.speedup is not None]
    if not rows:
        raise InputError("no measured result fits; `tailcut results list` shows what there is")
    written = []
    by_place = sorted(rows, key=lambda row: (row.model, row.machine))
    for (named, fingerprint), group in groupby(by_place, lambda row: (row.model, row.machine)):
        path = out / f"{_file_name(named)}-{_file_name(fingerprint)}.svg"
        write_file(path, drawn(tuple(group)))
        written.append({"model": named, "machine": fingerprint, "file": str(path)})
    print(jsonlib.dumps(written, indent=1) if json else "\n".join(item["file"] for item in written))


@app.command()
@expanded
def export(
    stored: StoreFile,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="A .jsonl or .csv file. [default: stdout]")] = None,
    model: Model = None, machine: MachineStart = None, engine: Engine = None, since: Since = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON lines with raw samples, as without it on stdout.")] = False,
) -> None:  # fmt: skip
    """Whole results as JSON lines, or measurements as CSV where the file's name ends so."""
    from tailcut.bench.store import lines

    if out is not None and not overwrite:
        require_absent(out)
    rows = _rows(stored, model, machine, engine, since)
    if out is not None and out.suffix == ".csv" and not json:
        write_file(out, _csv(rows).encode())
        return
    text = "".join(f"{line}\n" for line in lines(stored.open(), rows))
    if out is None:
        sys.stdout.write(text)
    else:
        write_file(out, text.encode())


def _rows(
    stored: StoreFile, model: str | None, machine: str | None, engine: str | None, since: str | None
) -> "tuple[Row, ...]":
    from tailcut.bench.store import Filter

    return stored.open().rows(Filter(model, machine, engine, since))


def _flat(row: "Row") -> dict[str, Any]:
    flat: dict[str, Any] = asdict(row)
    measured: dict[str, Any] = flat.pop("measured")
    return flat | measured


def _line(row: "Row") -> str:
    seen = row.measured
    speed = f"x{seen.speedup:.2f} [{seen.speedup_low:.2f}, {seen.speedup_high:.2f}]" if seen.speedup else seen.status
    quality = f"  perplexity x{seen.perplexity_ratio:.3f}" if seen.perplexity_ratio else ""
    text = f"{row.id:>5}  {row.recorded[:16]}  {row.machine[:8]}  {row.model:<24}  {seen.series:<44}  {speed}{quality}"
    return _clean(text)


def _clean(value: object) -> str:
    """Text from a file cannot drive the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in text).lstrip(".") or "_"


def _csv(rows: "Iterable[Row]") -> str:
    stream = io.StringIO()
    flat: Sequence[dict[str, Any]] = [_flat(row) for row in rows]
    if flat:
        writer = csv.DictWriter(stream, flat[0])
        writer.writeheader()
        writer.writerows(flat)
    return stream.getvalue()
