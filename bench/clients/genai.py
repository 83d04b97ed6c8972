"""onnxruntime-genai: its own search loop and tokenizer over genai_config.json; in an environment of its own."""

from pathlib import Path
from typing import Final

from tailcut.bench.clients import _paths
from tailcut.bench.environment import Recipe, installed_reason, python_of
from tailcut.bench.worker import Launch

TARGET: Final = "genai"
LICENCE: Final = "MIT"
RECIPE: Final = Recipe(
    name="genai",
    lock=Path(__file__).with_name("genai.lock"),
    pythons=((3, 11), (3, 12), (3, 13)),
    probe="import onnxruntime_genai; print(onnxruntime_genai.__version__)",
)


def available() -> str | None:
    return installed_reason(RECIPE)


def where() -> str:
    return str(python_of(RECIPE))


def launch(directory: Path, threads: int) -> Launch:
    return _paths.launch(where(), "genai_client_worker.py", directory, threads)
