"""The folder is the registry: a metric, allocator, pruner, engine, … is one file in its folder.

Names come from listing the folder, never from a config's dotted path, so nothing a recipe says can
make Python import something that is not already part of tailcut.
"""

import keyword
import pkgutil
from importlib import import_module
from types import ModuleType

from tailcut.errors import InputError


def names(package: str) -> tuple[str, ...]:
    """What can be chosen in `package` (such as "tailcut.compress.allocators"), as spelt on the command line."""
    module = import_module(package)
    found = (info.name for info in pkgutil.iter_modules(module.__path__))
    return tuple(sorted(name.rstrip("_").replace("_", "-") for name in found if not name.startswith("_")))


def require(package: str, name: str, *others: str) -> str:
    """The plugin's name as spelt on the command line; InputError lists the choices when it is unknown.

    It may also be one of the packages `others`, whose plugins are chosen by the same setting.
    """
    known = tuple(sorted({found for one in (package, *others) for found in names(one)}))
    spelt = name.replace("_", "-")
    if spelt not in known:
        kind = package.rsplit(".", 1)[-1].removesuffix("s")
        raise InputError(f"unknown {kind} {name!r}; choose one of {', '.join(known)}")
    return spelt


def load(package: str, name: str) -> ModuleType:
    """The module of one plugin; InputError lists the choices when the name is unknown."""
    file = require(package, name).replace("-", "_")
    # a plugin whose name is a Python keyword is in a file that ends with _: global is global_.py
    return import_module(f"{package}.{file}_" if keyword.iskeyword(file) else f"{package}.{file}")
