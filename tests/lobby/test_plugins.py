"""The folder is the registry, and a name can reach nothing outside it."""

import sys

import pytest

from tailcut import plugins
from tailcut.errors import InputError

FOLDER = "tailcut.compress.models"


def test_names_are_the_files_of_the_folder_as_spelt_on_the_command_line() -> None:
    assert plugins.names(FOLDER) == ("gemma3-270m", "smollm2-135m", "synthetic-llama")


@pytest.mark.parametrize("name", ["smollm2-135m", "smollm2_135m"])
def test_both_spellings_load(name: str) -> None:
    assert plugins.load(FOLDER, name).__name__ == f"{FOLDER}.smollm2_135m"


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "os", "os.path", "tailcut.cli", "_writing", "_gguf_llama", "../cli", "synthetic_llama.os",
     "synthetic_llama:make", "antigravity", "Synthetic-Llama", " synthetic-llama"],
)  # fmt: skip
def test_no_other_module_can_be_reached(name: str) -> None:
    before = set(sys.modules)
    with pytest.raises(InputError, match=r"unknown model .*; choose one of gemma3-270m, smollm2-135m, synthetic-llama"):
        plugins.load(FOLDER, name)
    assert set(sys.modules) - before == set()
