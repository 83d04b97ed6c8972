"""`tailcut models`: make a model directory on a machine without a model hub."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Make ordinary Hugging Face directories to work on, without a model hub.")


@app.command("get")
def get(
    name: Annotated[str, typer.Argument(help="Which model; `tailcut models list` shows them.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory to make; default models/NAME.")
    ] = None,
    like: Annotated[str, typer.Option(help="synthetic-llama: whose shapes, tiny, 1.1b (default) or 7b.")] = "",
    dtype: Annotated[str | None, typer.Option(help="synthetic-llama: float16 (default), bfloat16 or float32.")] = None,
    seed: Annotated[int, typer.Option(help="synthetic-llama: seed of the random weights.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the directory if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Write one model as a directory with safetensors, config, tokenizer and manifest."""
    from tailcut.compress.make_model import make_model, settings_of
    from tailcut.progress import console

    settings = settings_of(like=like, dtype=dtype, seed=seed)
    path = output or Path("models") / (f"{name}-{like}" if like else name)
    with console(quiet=as_json) as report:
        manifest = make_model(name, path, settings, overwrite=overwrite, report=report)
    if as_json:
        facts = {"directory": str(path), "parameters": manifest.total_parameters, "notes": list(manifest.notes)}
        print(json.dumps({"name": name, **facts}))
        return
    size = sum(entry.size_bytes for entry in manifest.files.values())
    print(f"{path}: {manifest.total_parameters / 1e6:.1f} M parameters, {size / 1e9:.2f} GB")
    for note in manifest.notes:
        print(f"note: {note}")


@app.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON on stdout.")] = False,
) -> None:
    """Show the models that `tailcut models get` can make."""
    from tailcut.compress.make_model import summaries

    known = summaries()
    if as_json:
        print(json.dumps([{"name": name, "summary": text} for name, text in known.items()]))
        return
    for name, text in known.items():
        print(f"{name:<18} {text}")
