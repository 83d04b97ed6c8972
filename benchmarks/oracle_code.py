"""The public repositories' own functions, read from checkouts when the script runs. Nothing of theirs is copied here.

A file is executed as it stands, except that its device names say CPU (`_ON_CPU`), and that modules which it imports
beside or around it but which the function does not need (data sets, other libraries) are empty stand-ins. What a function
only prints is read from its own `print`. This runs other people's code: give checkouts that you trust.
"""

import importlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final

# written for a GPU; a CPU build of torch has no device to move to or to wait for
_ON_CPU: Final = (("cuda:0", "cpu"), (".cuda()", ""), ("torch.cuda.synchronize()", "None"))


@dataclass(frozen=True, slots=True)
class Source:
    """One file of one repository, what of it is run, and which of its imports are empty stand-ins."""

    repository: str  # owner/name; the checkout is the folder of that name
    file: str
    functions: tuple[str, ...]
    package: str  # name under which the file's folder is imported
    siblings: tuple[str, ...] = ()  # modules beside it
    others: tuple[str, ...] = ()  # modules from elsewhere

    @property
    def folder(self) -> str:
        return self.repository.partition("/")[2]


_DATA: Final = ("data",)  # it imports the library `datasets` and downloads C4
SOURCES: Final[Mapping[str, Source]] = {
    "magnitude": Source("locuslab/wanda", "lib/prune.py", ("prune_magnitude",), "oracle_wanda", _DATA),
    "wanda": Source("locuslab/wanda", "lib/prune.py", ("prune_wanda",), "oracle_wanda", _DATA),
    "wanda-variant": Source("locuslab/wanda", "lib/prune.py", ("prune_wanda",), "oracle_wanda", _DATA),
    "wanda-run": Source("locuslab/wanda", "lib/prune.py", ("prune_wanda",), "oracle_wanda", _DATA),
    "ria": Source(
        "biomedical-cybernetics/Relative-importance-and-activation-pruning",
        "lib/prune.py",
        ("prune_ria",),
        "oracle_ria",
        _DATA,
    ),
    "dsnot": Source("zyxxmu/DSnoT", "lib/prune.py", ("prune_DSnoT",), "oracle_dsnot", _DATA),
    "sparsegpt": Source("IST-DASLab/sparsegpt", "sparsegpt.py", ("SparseGPT",), "oracle_sparsegpt"),
    "alps": Source("mazumder-lab/ALPS", "alps.py", ("ALPS_prune",), "oracle_alps"),
    "alpha-metrics": Source(
        "haiquanlu/AlphaPruning", "lib/esd_utils.py", ("net_esd_estimator",), "oracle_alpha", (), ("weightwatcher",)
    ),
    "alpha-ratios": Source("haiquanlu/AlphaPruning", "lib/prune.py", ("ww_sparsity",), "oracle_alpha", _DATA),
    "owl": Source("luuyin/OWL", "lib/prune_all.py", ("prune_wanda_outlier",), "oracle_owl", _DATA),
    "dlp": Source("ironartisan/DLP", "lib/prune.py", ("get_dlp_ratios",), "oracle_dlp", _DATA),
    "lamp": Source(
        "jaeho-lee/layer-adaptive-sparsity", "tools/pruners.py", ("_compute_lamp_amounts",), "tools", ("dataloaders",)
    ),
    "erk": Source(
        "jaeho-lee/layer-adaptive-sparsity", "tools/pruners.py", ("_compute_erk_amounts",), "tools", ("dataloaders",)
    ),
}


@dataclass(slots=True)
class Oracle:
    """A loaded file: its module, and what its code has printed since it was loaded."""

    module: ModuleType
    printed: list[tuple[Any, ...]] = field(default_factory=list)

    def told(self, first: str) -> Any:  # noqa: ANN401  (whatever the file prints)
        """What the latest line that begins with `first` goes on with."""
        lines = reversed(self.printed)
        return next(words[1] for words in lines if words and isinstance(words[0], str) and words[0] == first)


def load(checkouts: Path, source: Source) -> Oracle:
    """The file of `source` as a module; the imports of its own repository are gone from sys.modules afterwards."""
    path = checkouts / source.folder / source.file
    text = path.read_text()
    for ours, theirs in _ON_CPU:
        text = text.replace(ours, theirs)
    module = ModuleType(f"{source.package}.{path.stem}")
    oracle = Oracle(module)
    vars(module).update(__file__=str(path), __package__=source.package, print=_recorder(oracle))
    with _importable(path.parent, source):
        exec(compile(text, str(path), "exec"), vars(module))  # noqa: S102  (that is what this module is for)
    return oracle


def _recorder(oracle: Oracle) -> Any:  # noqa: ANN401  (a print that its caller never sees)
    return lambda *words, **_: oracle.printed.append(words)


@contextmanager
def _importable(folder: Path, source: Source) -> Iterator[None]:
    """`folder` as the package, and on the path as the script's own; names that this adds are taken out again."""
    before = dict(sys.modules)
    package = ModuleType(source.package)
    package.__path__ = [str(folder)]
    sys.modules[source.package] = package
    for name in (*(f"{source.package}.{sibling}" for sibling in source.siblings), *source.others):
        sys.modules[name] = _Empty(name)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - set(before):
            origin = getattr(sys.modules[name], "__file__", None)
            if isinstance(sys.modules[name], _Empty) or name == source.package or _below(origin, folder):
                del sys.modules[name]


class _Empty(ModuleType):
    """Has whatever is imported from it, as None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _below(origin: object, folder: Path) -> bool:
    return isinstance(origin, str) and folder in Path(origin).parents


def commit_of(checkouts: Path, source: Source) -> str | None:
    """The commit of a checkout; None where it has no history."""
    words = ["git", "-C", str(checkouts / source.folder), "rev-parse", "HEAD"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 and (checkouts / source.folder / ".git").exists() else None


def described(checkouts: Path, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Where each oracle comes from, as the result names it."""
    return {
        name: {
            "repository": SOURCES[name].repository,
            "commit": commit_of(checkouts, SOURCES[name]),
            "file": SOURCES[name].file,
            "functions": list(SOURCES[name].functions),
        }
        for name in names
    }
