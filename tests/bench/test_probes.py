"""Probes on machines of every kind, each a small tree of /proc and /sys."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tailcut.bench import probes
from tailcut.bench.probes import GROUPS, Finding, System, noise
from tailcut.kernels import library

CPU = "sys/devices/system/cpu"
QUICK = [name for name in probes.names() if not probes.load(name).MEASURES]
AVX512 = "avx512f avx512dq avx512bw avx512vl avx512vbmi avx512_vbmi2 avx512_vnni"
AVX2 = "avx2 fma f16c bmi1 bmi2 popcnt"
Look = Callable[..., Finding]


@pytest.fixture
def look(tmp_path: Path) -> Look:
    """look(probe, {path: text}, cpus) -> what the probe finds on a machine that shows these files and no others."""

    def looked(name: str, files: Mapping[str, str] | None = None, cpus: tuple[int, ...] = (0, 1)) -> Finding:
        for path, text in (files or {}).items():
            target = tmp_path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return probes.load(name).probe(System(tmp_path, cpus))

    return looked


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("machine", ["bare", "garbage", "here"])
def test_every_probe_finds_something_to_say(name: str, machine: str, look: Look) -> None:
    """Of an empty container, of files full of rubbish, of this machine; advice wherever something could be better."""
    if machine == "here":
        found = probes.load(name).probe(System())
    else:
        found = look(name, RUBBISH if machine == "garbage" else {})
    assert found.level in ("good", "unknown", "hint", "blocked")
    assert found.sentence
    assert "\n" not in found.sentence + found.advice
    if found.level in ("hint", "blocked"):
        assert found.advice.rstrip("`").endswith(".")
    assert all(isinstance(value, str | int | float | bool | None) for value in found.facts.values())
    module = probes.load(name)
    assert module.GROUP in GROUPS
    assert len(module.TITLE) <= 20


RUBBISH = dict.fromkeys(
    [
        "proc/cpuinfo",
        "proc/meminfo",
        "proc/stat",
        "proc/self/cgroup",
        "proc/1/cgroup",
        "sys/fs/cgroup/cpu.max",
        "sys/fs/cgroup/cpu.stat",
        "sys/fs/cgroup/memory.max",
        f"{CPU}/online",
        f"{CPU}/smt/active",
        f"{CPU}/cpu0/cpufreq/scaling_governor",
        f"{CPU}/cpu0/topology/thread_siblings_list",
        f"{CPU}/intel_pstate/no_turbo",
        "sys/kernel/mm/transparent_hugepage/enabled",
        "sys/devices/system/clocksource/clocksource0/current_clocksource",
    ],
    "²³ ::: 0/0 -9- \x00 []",
)


def test_governor(look: Look) -> None:
    found = look("governor", {f"{CPU}/cpu0/cpufreq/scaling_governor": "powersave\n"})
    assert found.level == "hint"
    assert found.sentence == "governor is powersave"
    assert "cpupower" in found.advice
    files = {f"{CPU}/cpu{cpu}/cpufreq/scaling_governor": "performance" for cpu in (0, 1)}
    assert look("governor", files).level == "good"


def test_a_governor_of_a_cpu_that_is_not_ours_does_not_count(look: Look) -> None:
    files = {f"{CPU}/cpu{cpu}/cpufreq/scaling_governor": name for cpu, name in ((0, "performance"), (5, "powersave"))}
    assert look("governor", files, (0,)).level == "good"
    assert look("governor", files, (0, 5)).sentence == "governor is performance, powersave"


@pytest.mark.parametrize(
    ("path", "text", "level"),
    [
        ("intel_pstate/no_turbo", "0", "hint"),
        ("intel_pstate/no_turbo", "1", "good"),
        ("cpufreq/boost", "1", "hint"),
        ("cpufreq/boost", "0", "good"),
    ],
)
def test_turbo(path: str, text: str, level: str, look: Look) -> None:
    assert look("turbo", {f"{CPU}/{path}": text}).level == level


@pytest.mark.parametrize(
    ("flags", "level", "said"),
    [
        ("sse2", "hint", "portable kernels"),
        (AVX2, "good", "avx2 kernels"),
        (f"{AVX2} {AVX512}", "good", "avx2, avx512 kernels"),
        (f"{AVX2} {AVX512} amx_tile amx_int8 amx_bf16", "good", "avx2, avx512, amx kernels"),
    ],
)
def test_processor(flags: str, level: str, said: str, look: Look) -> None:
    found = look(
        "processor", {"proc/cpuinfo": f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n\nprocessor: 1"}
    )
    assert found.level == level
    assert said in found.sentence
    assert found.sentence.startswith("Some CPU;")


def test_a_processor_with_half_of_avx512(look: Look) -> None:
    found = look("processor", {"proc/cpuinfo": f"flags: {AVX2} avx512f avx512dq avx512bw avx512vl"})
    assert "AVX-512 without avx512vbmi" in found.advice


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "50000 100000"}, 0.5),
        ({"proc/self/cgroup": "0::/gone", "sys/fs/cgroup/cpu.max": "100000 100000"}, 1.0),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 0.5),
        (
            {
                "proc/self/cgroup": "5:cpuacct,cpu:/box\n0::/",
                "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "25000",
                "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000",
            },
            0.25,
        ),
        ({"sys/fs/cgroup/cpu.max": "1 0"}, None),
    ],
)
def test_a_quota_of_cpu_time(files: dict[str, str], quota: float | None, look: Look) -> None:
    found = look("cpus", files)
    assert found.facts["quota"] == quota
    assert found.level == ("good" if quota is None else "hint")
    if quota is not None:
        assert f"--threads {max(1, int(quota))}" in found.advice


def test_affinity_leaves_cpus_out(look: Look) -> None:
    found = look("cpus", {f"{CPU}/online": "0-3,8\n"}, (1,))
    assert found.sentence == "1 usable of 5: an affinity mask or cpuset leaves the others out"


def test_hyperthreads(look: Look) -> None:
    files = {f"{CPU}/cpu{cpu}/topology/thread_siblings_list": "0-1" for cpu in (0, 1)} | {f"{CPU}/smt/active": "1"}
    found = look("smt", files)
    assert found.level == "hint"
    assert found.sentence == "2 usable CPUs are 1 cores"
    assert "--threads 1" in found.advice
    assert "belong to others" in look("smt", files, (0,)).advice


def test_virtual_machines_and_containers(look: Look) -> None:
    assert look("virtual").sentence == "bare metal"
    assert look("virtual", {".dockerenv": ""}).sentence == "in a container (Docker) on bare metal"
    files = {
        "proc/cpuinfo": "flags: fpu hypervisor",
        "sys/class/dmi/id/sys_vendor": "QEMU\n",
        "proc/1/cgroup": "0::/kubepods/burstable/pod1",
    }
    found = look("virtual", files)
    assert found.level == "hint"
    assert found.sentence == "a virtual machine (QEMU), in a container (Kubernetes)"


def test_memory(look: Look) -> None:
    plenty = "MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB"
    assert look("memory", {"proc/meminfo": plenty}).level == "good"
    found = look("memory", {"sys/fs/cgroup/memory.max": "1000000000"})
    assert found.level == "hint"
    assert "this container may use 1.0 GB" in found.sentence
    # version 1 writes "no limit" as a number beyond any memory
    found = look("memory", {"sys/fs/cgroup/memory.max": "9223372036854771712"})
    assert (found.level, "container" in found.sentence) == ("good", False)
    swapping = plenty.replace("SwapTotal: 0", "SwapTotal: 3000000").replace("SwapFree: 0", "SwapFree: 1000000")
    assert "2.0 GB are swapped out" in look("memory", {"proc/meminfo": swapping}).sentence


def test_huge_pages(look: Look) -> None:
    path = "sys/kernel/mm/transparent_hugepage/enabled"
    assert look("huge-pages", {path: "always madvise [never]"}).level == "hint"
    assert look("huge-pages", {path: "always [madvise] never"}).level == "good"


def test_memory_nodes(look: Look) -> None:
    base = "sys/devices/system/node"
    files = {f"{base}/node0/cpu0/online": "1", f"{base}/node1/cpu1/online": "1", f"{base}/online": "0-1"}
    found = look("numa", files)
    assert found.level == "hint"
    assert "numactl" in found.advice
    assert look("numa", files, (0,)).level == "good"


def test_a_slow_clock(look: Look) -> None:
    found = look("clock", {"sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet\n"})
    assert found.level == "hint"
    assert "clocksource=tsc" in found.advice


def test_kernels_that_were_not_compiled_block(look: Look, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert look("kernels").level != "blocked"
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "none.so")
    found = look("kernels")
    assert found.level == "blocked"
    assert "tailcut engines install tailcut" in found.advice
    assert "tailcut: tailcut's kernels were not compiled" in look("engines").advice


def test_noise_foretells_what_a_longer_measurement_shows() -> None:
    """On noise that is independent from sample to sample: what a quarter foretells, the whole then has."""
    rng = np.random.default_rng(0)
    halves = []
    for _ in range(20):
        times = 5.0 * np.exp(rng.normal(0, 0.05, 1920))  # 10 s
        seconds = float(times.sum()) / 1e3
        halves.append((noise.interval_after(times[:480], seconds), noise.interval_after(times, seconds)))
    foretold, seen = np.mean(halves, axis=0)
    # each is a mean of 20 standard errors over 12 blocks, some 20 % uncertain each: 5 % together
    assert foretold == pytest.approx(seen, rel=0.2)
    assert noise.interval_after(np.full(480, 5.0), 60.0) == pytest.approx(0.0, abs=1e-12)


def test_noise_is_not_foretold_to_grow() -> None:
    """Samples that already last longer than the benchmark say what they say."""
    times = 5.0 * np.exp(np.random.default_rng(0).normal(0, 0.05, 4800))
    assert noise.interval_after(times, 1.0) == noise.interval_after(times, 24.0) > 0
    assert math.isclose(noise.interval_after(times, 1e4), noise.interval_after(times, 4e4) * 2, rel_tol=1e-9)
