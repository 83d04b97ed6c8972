"""Only the compiled kernels: everything else of the package is in pyproject.toml.

The library is no Python extension (it is loaded by ONNX Runtime and by ctypes), so it fits every Python version. A machine
without a C++ compiler gets the package without it; `tailcut engines list` then says why the engine is missing.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NAME = "tailcut.kernels.libtailcut_cpu"


def builder() -> ModuleType:
    """kernels/build.py, which needs nothing of the package."""
    path = Path(__file__).resolve().parent / "kernels" / "build.py"
    spec = importlib.util.spec_from_file_location("tailcut_kernels_build", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is missing from this source tree")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildKernels(build_ext):
    """Compile into the source tree, where a second run finds its objects, and copy from there."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        tool = builder()
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            made = tool.build(tool.LIBRARY, jobs=os.cpu_count() or 1)
        except tool.BuildError as error:
            sys.stderr.write(f"tailcut: without its own kernels: {error}\n")
            return
        if not target.exists() or not target.samefile(made):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(made, target)


class AnyPython(bdist_wheel):
    """The wheel belongs to a platform, not to a version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension(NAME, sources=[], optional=True)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPython},
)
