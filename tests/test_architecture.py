"""The house rules, asserted on the source: who may import whom, sizes, safety, and what must not be committed."""

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tailcut import plugins

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("compress", "export", "kernels", "bench")
DOORS = {"export": {"kernels"}, "bench": {"kernels"}}  # which other rooms a room may import
HEAVY = {"torch", "transformers", "accelerate", "datasets"}
# the lobby parts that call rooms; only inside functions, so that `tailcut --help` stays light
CALLERS = (
    "src/tailcut/commands/",
    "src/tailcut/pipeline.py",
    "src/tailcut/pipeline_work.py",
    "src/tailcut/sweep.py",
    "src/tailcut/sweep_work.py",
    "src/tailcut/fleet.py",
)
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, and whether it happens when the importing file is loaded."""

    module: str
    line: int
    at_load: bool


def sources(*tops: str) -> list[Path]:
    """Python files below the given top-level folders, through no symlink."""
    found = (path for top in tops for path in (ROOT / top).rglob("*.py"))
    return sorted(path for path in found if not any(parent.is_symlink() for parent in path.parents))


LOBBY = sources("src")
ROOM_FILES = [path for room in ROOMS for path in sources(room)]
CODE = LOBBY + ROOM_FILES
EVERYTHING = CODE + sources("tests", "scripts", "benchmarks")


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> list[Import]:
    """Every import of a file. `from tailcut import bench` counts as tailcut.bench; TYPE_CHECKING is not loading."""
    found: list[Import] = []

    def visit(node: ast.AST, at_load: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, at_load) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found.append(Import(module, node.lineno, at_load))
            found.extend(Import(f"{module}.{alias.name}", node.lineno, at_load) for alias in node.names)
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, at_load and not checking and not function)

    visit(ast.parse(path.read_text()), True)
    return found


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "tailcut" and parts[1] in ROOMS else None


@pytest.mark.parametrize("path", ROOM_FILES, ids=short)
def test_rooms_import_only_themselves_the_lobby_and_their_doors(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    allowed = {own} | DOORS.get(own, set())
    wrong = [
        f"{short(path)}:{found.line} imports {found.module}"
        for found in imports(path)
        if (room := room_of(found.module)) is not None and room not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("path", LOBBY, ids=short)
def test_lobby_reaches_rooms_only_from_commands_and_only_when_called(path: Path) -> None:
    caller = short(path).startswith(CALLERS)
    to_rooms = [found for found in imports(path) if room_of(found.module) is not None]
    wrong = [f"{short(path)}:{found.line} imports {found.module}" for found in to_rooms if found.at_load or not caller]
    assert wrong == []


# started in a process of their own, never imported
GPU_WORKERS = ("bench/workers/gpu_", "bench/workers/torch_cuda_", "bench/workers/hf_", "bench/workers/peer_")
GPU_KERNELS = sources("kernels/gpu")
LIGHT = [
    path for path in LOBBY + sources("kernels", "bench") if not short(path).startswith((*GPU_WORKERS, "kernels/gpu/"))
]


@pytest.mark.parametrize("path", LIGHT, ids=short)
def test_lobby_kernels_and_bench_never_import_torch(path: Path) -> None:
    wrong = [
        f"{short(path)}:{found.line} imports {found.module}"
        for found in imports(path)
        if found.module.split(".")[0] in HEAVY | {"triton"} or found.module.startswith("tailcut.kernels.gpu")
    ]
    assert wrong == []


def needs_triton(path: Path) -> bool:
    """Whether a file holds Triton kernels: it imports Triton when it is loaded."""
    return any(found.at_load and found.module.split(".")[0] == "triton" for found in imports(path))


@pytest.mark.parametrize("path", GPU_KERNELS, ids=short)
def test_gpu_kernels_import_nothing_heavier_than_torch_and_triton_only_when_called(path: Path) -> None:
    """A file without kernels of its own may load one that has them only inside a function."""
    with_kernels = {f"tailcut.kernels.gpu.{file.stem}" for file in GPU_KERNELS if needs_triton(file)}
    own = needs_triton(path)
    wrong = [
        f"{short(path)}:{found.line} imports {found.module}"
        for found in imports(path)
        if found.module.split(".")[0] in HEAVY - {"torch"}
        or (found.at_load and not own and (found.module.split(".")[0] == "triton" or found.module in with_kernels))
    ]
    assert wrong == []


def test_gpu_kernels_load_without_triton_and_without_a_gpu() -> None:
    """Every module but those that hold Triton kernels, in a process in which Triton cannot be found."""
    names = [
        f"tailcut.kernels.gpu.{path.stem}" for path in GPU_KERNELS if path.stem != "__init__" and not needs_triton(path)
    ]
    code = (
        "import sys, importlib\n"
        "sys.modules['triton'] = None\n"
        f"for name in {names!r}: importlib.import_module(name); print(name)\n"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == names


def test_lobby_kernels_and_bench_load_where_torch_is_absent() -> None:
    """Every module, imported in a process in which torch and transformers cannot be found.

    `bench/workers` are scripts for other interpreters (one of them has no tailcut at all): they are started,
    never imported. `kernels/gpu` is torch's. The compiled kernels are no module of Python's, though their file ends like one.
    """
    code = (
        "import sys, pkgutil, importlib\n"
        f"sys.modules.update(dict.fromkeys({sorted(HEAVY)!r}))\n"
        "import tailcut\n"
        "skip = ('tailcut.compress', 'tailcut.export', 'tailcut.__main__', 'tailcut.bench.workers', "
        "'tailcut.kernels.gpu', 'tailcut.kernels.libtailcut_cpu')\n"
        "def walk(package):\n"
        "    for info in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        if not info.name.startswith(skip):\n"
        "            module = importlib.import_module(info.name)\n"
        "            print(info.name)\n"
        "            if info.ispkg: walk(module)\n"
        "walk(tailcut)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = done.stdout.split()
    assert {"tailcut.kernels", "tailcut.bench", "tailcut.checkpoint", "tailcut.commands.run"} <= set(loaded)


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, tailcut.cli as c; c._register(); sys.exit(any(n in sys.modules for n in ('torch', 'scipy')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or "torch or scipy was imported"


@pytest.mark.parametrize("path", EVERYTHING, ids=short)
def test_files_are_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


def function_lines(path: Path, node: ast.FunctionDef) -> int:
    """Lines of a function; a command's options (its signature) are documentation and not counted."""
    first = node.body[0].lineno if short(path).startswith("src/tailcut/commands/") else node.lineno
    return (node.end_lineno or node.lineno) - first + 1


@pytest.mark.parametrize("path", [path for path in CODE if "kernels" not in path.parts], ids=short)
def test_functions_are_short_enough_to_read(path: Path) -> None:
    functions = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef))
    sizes = {f"{short(path)}:{node.lineno} {node.name}": function_lines(path, node) for node in functions}
    assert {name: size for name, size in sizes.items() if size > MAX_FUNCTION_LINES} == {}


def test_rooms_are_links_in_the_lobby() -> None:
    for room in ROOMS:
        link = ROOT / "src" / "tailcut" / room
        assert link.is_symlink()
        assert str(link.readlink()) == f"../../{room}"


# what may run code that a file or a config brings along
DANGEROUS_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "pickle.load",
    "pickle.loads",
    "torch.load",
    "yaml.load",
    "os.system",
    "marshal.loads",
}
DANGEROUS_FLAGS = {"trust_remote_code", "allow_pickle", "shell"}


def call_name(node: ast.Call) -> str:
    return ast.unparse(node.func)


@pytest.mark.parametrize("path", CODE, ids=short)
def test_nothing_runs_code_from_a_file(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    wrong = [f"{short(path)}:{node.lineno} {call_name(node)}" for node in calls if call_name(node) in DANGEROUS_CALLS]
    flags = [(node, word) for node in calls for word in node.keywords if word.arg in DANGEROUS_FLAGS]
    wrong += [
        f"{short(path)}:{node.lineno} {word.arg}"
        for node, word in flags
        if not (isinstance(word.value, ast.Constant) and word.value.value is False)
    ]
    assert wrong == []


# module names may be built at run time only where plugins are looked up by listing a folder
BUILDS_MODULE_NAMES = {"src/tailcut/plugins.py", "src/tailcut/cli.py"}


@pytest.mark.parametrize("path", CODE, ids=short)
def test_only_the_plugin_lookup_imports_by_a_computed_name(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    computed = [
        node.lineno
        for node in calls
        if call_name(node).split(".")[-1] == "import_module" and not isinstance(node.args[0], ast.Constant)
    ]
    assert not computed or short(path) in BUILDS_MODULE_NAMES, computed


def tracked() -> list[Path]:
    """Text files git knows, except the licence."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout: what is committed cannot be listed")
    paths = (ROOT / name for name in done.stdout.split("\0") if name and name != "LICENSE")
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def readable(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return ""  # images and other binary results


# spelt in two halves, so that this file does not contain what it forbids
FORBIDDEN = {
    "package registry host": "py" + r"pi\.org|python" + r"hosted\.org|download\.py" + r"torch\.org|/opt/" + "pypi",
    "path of one machine": "/work/" + r"(main|shared)\b|/tmp/" + r"w/|/home/(?!tailcut\b)\w+/|/root/" + r"\w",
    "unfinished work": r"\bTO" + r"DO\b|\bFIX" + r"ME\b|\bXX" + r"X\b|NotImplemented" + "Error",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_tracked_files_are_free_of(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    hits = [
        f"{short(path)}: {match.group()}" for path in tracked() if (match := pattern.search(readable(path))) is not None
    ]
    assert hits == []


def test_the_scan_notices_what_it_looks_for() -> None:
    """The patterns themselves can fail."""
    samples = {
        "package registry host": "https://py" + "pi.org/simple",
        "path of one machine": "/work/" + "main/x",
        "unfinished work": "# TO" + "DO: later",
    }
    for what, sample in samples.items():
        assert re.search(FORBIDDEN[what], sample)


def test_no_large_or_weight_files_are_tracked() -> None:
    large = [short(path) for path in tracked() if path.stat().st_size > 2_000_000]
    weights = [short(path) for path in tracked() if path.suffix in {".safetensors", ".gguf", ".onnx", ".bin", ".pt"}]
    assert large + weights == []


FOLDERS = {
    "tailcut.compress.importers": "Importer",
    "tailcut.compress.models": "Maker",
    "tailcut.compress.metrics": "Metric",
    "tailcut.compress.allocators": "Allocator",
    "tailcut.compress.searches": "Search",
    "tailcut.compress.pruners": "Pruner",
    "tailcut.compress.recovery": "Recovery",
    "tailcut.export.families": "Family",
    "tailcut.export.targets": "Target",
    "tailcut.bench.clients": "Client",
    "tailcut.bench.engines": "Engine",
    "tailcut.bench.outputs": "Output",
    "tailcut.bench.peers": "Peer",
    "tailcut.recipe_formats": "RecipeFormat",
    "tailcut.bench.probes": "Probe",
}


def members(protocol: Any) -> set[str]:
    """Public names a Protocol asks for: annotated constants, properties and methods."""
    return {name for name in {*vars(protocol), *protocol.__annotations__} if not name.startswith("_")}


CASES = [(package, name) for package in FOLDERS for name in plugins.names(package)]


@pytest.mark.parametrize(("package", "name"), CASES)
def test_plugin_offers_what_its_folder_asks_for(package: str, name: str) -> None:
    asked = members(getattr(import_module(package), FOLDERS[package]))
    assert asked
    offered = plugins.load(package, name)
    assert [word for word in sorted(asked) if not hasattr(offered, word)] == []


@pytest.mark.parametrize("path", sources("src/tailcut/commands"), ids=short)
def test_command_file_offers_a_command_with_help(path: Path) -> None:
    if path.stem.startswith("_"):
        return
    module = import_module(f"tailcut.commands.{path.stem}")
    if hasattr(module, "app"):
        assert module.app.info.help
        assert all(command.callback.__doc__ for command in module.app.registered_commands)
    else:
        assert module.command.__doc__
