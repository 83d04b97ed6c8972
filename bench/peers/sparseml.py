"""SparseML 1.8.0 (end of life), whose OBCQ and Wanda with OWL are the nearest relatives of ours.

Its own dependencies want numpy < 2 and torch of 2024. Its pruning modifiers run beside today's torch and transformers
when its packages are installed without their dependencies and `onnx.mapping`, gone from onnx, is given as an empty
module. So the environment holds SparseML and what it needs besides; torch, transformers and onnx are lent by tailcut's
own environment, behind it on the import path. Both must therefore be of one Python version, at most 3.11.
"""

import os
import sys
import sysconfig
from pathlib import Path
from typing import Final

from tailcut.bench.environment import Recipe, installed_reason, python_of
from tailcut.bench.worker import SCRIPTS, Launch

LICENCE: Final = "SparseML 1.8.0 is Apache-2.0; it is no longer maintained."
NEWEST: Final = (3, 11)  # its metadata ask for less than 3.12
_OWN: Final = (sys.version_info.major, sys.version_info.minor)
_LENT: Final = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
_PROBE: Final = (
    f"import sys, types; sys.path.extend({_LENT!r}); import onnx; "
    "onnx.mapping = sys.modules['onnx.mapping'] = types.ModuleType('onnx.mapping'); "
    "onnx.mapping.TENSOR_TYPE_TO_NP_TYPE = onnx.mapping.NP_TYPE_TO_TENSOR_TYPE = {}; "
    "import sparseml, sparseml.modifiers.obcq.pytorch; print(sparseml.__version__)"
)
RECIPE: Final = Recipe(
    name="sparseml",
    lock=Path(__file__).with_name("sparseml.lock"),
    pythons=(min(_OWN, NEWEST),),
    probe=_PROBE,
    environment={"NM_DISABLE_ANALYTICS": "1"},
    licence=LICENCE,
)


def available() -> str | None:
    if _OWN > NEWEST:
        return f"it runs beside tailcut's own torch and needs Python 3.11 or older, tailcut runs on {_OWN[0]}.{_OWN[1]}"
    return installed_reason(RECIPE)


def where() -> str:
    return str(python_of(RECIPE))


def launch(model: Path, threads: int) -> Launch:
    """A worker that opens `model` (a Hugging Face directory) in float32 with `threads` threads."""
    settings = {"model": str(model.resolve()), "threads": threads, "lent": _LENT}
    drop = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_PRELOAD")
    environment = dict(RECIPE.environment) | {"HF_HUB_OFFLINE": "1", "PATH": os.defpath}
    return Launch(where(), SCRIPTS / "peer_sparseml_worker.py", settings, environment, drop)
