"""What the measurement ran on: processor, memory, versions, commit. No host or user names."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from tailcut import __version__
from tailcut.results import Machine

_CPU = Path("/sys/devices/system/cpu")
_ISA = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "avx512vbmi", "avx512_vbmi2", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "sve",
)  # fmt: skip
_PACKAGES = ("numpy", "onnxruntime", "tokenizers")


def describe_machine() -> Machine:
    """Read it from /proc and /sys; what the system does not say is None or 0."""
    info = _cpuinfo()
    cpu = info.get("model name") or info.get("Model") or platform.machine()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    isa = tuple(name for name in _ISA if name in flags)
    cores, logical = len(physical_cpus()), len(usable_cpus())
    ram = int(psutil.virtual_memory().total)
    lines = [cpu, *isa, str(cores), str(logical), str(round(ram / 1e9))]
    versions = {"tailcut": __version__, "python": platform.python_version()} | versions_of(_PACKAGES)
    return Machine(
        cpu=cpu,
        isa=isa,
        cores=cores,
        logical_cpus=logical,
        ram_bytes=ram,
        l3_bytes=l3_bytes(),
        governor=_text(_CPU / "cpu0/cpufreq/scaling_governor"),
        kernel=f"{platform.system()} {platform.release().split('-')[0]}",
        versions=versions,
        commit=commit(Path(__file__).resolve().parent),
        fingerprint=hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
    )


def usable_cpus() -> list[int]:
    """CPU numbers this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def physical_cpus() -> list[int]:
    """One CPU number a physical core, of those this process may use."""
    chosen: dict[str, int] = {}
    for cpu in usable_cpus():
        siblings = _text(_CPU / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        chosen.setdefault(siblings, cpu)
    return sorted(chosen.values())


def pinned_cpus(threads: int) -> list[int]:
    """The CPUs that `threads` threads are kept on: separate cores first, then their siblings."""
    cores = physical_cpus()
    return (cores + [cpu for cpu in usable_cpus() if cpu not in cores])[:threads]


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """This process on the CPUs that `threads` threads are kept on, for as long as the context lasts."""
    everything = os.sched_getaffinity(0)
    os.sched_setaffinity(0, pinned_cpus(threads))
    try:
        yield
    finally:
        os.sched_setaffinity(0, everything)


def l3_bytes() -> int:
    """Size of the last-level cache that CPU 0 sees; 0 when unknown."""
    text = _text(_CPU / "cpu0/cache/index3/size")
    return int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}.get(text[-1], 1) if text else 0


def commit(directory: Path) -> str | None:
    """The git commit of the checkout `directory` lies in; without git TAILCUT_COMMIT, or None.

    The variable is for a copy of a checkout that was carried to another machine.
    """
    head = _git(directory, "rev-parse", "--short=12", "HEAD")
    if head is None or _git(directory, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return os.environ.get("TAILCUT_COMMIT") or None
    dirty = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return head + ("+changes" if dirty else "")


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpuinfo() -> dict[str, str]:
    text = _text(Path("/proc/cpuinfo")) or ""
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def versions_of(names: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
