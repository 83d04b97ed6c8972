"""What is said of the machine, its bandwidth, the bytes of a token, and the load of others."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tailcut import codec
from tailcut.bench.bandwidth import best_of, measure_bandwidth
from tailcut.bench.load import OthersLoad
from tailcut.bench.machine import describe_machine, physical_cpus, pinned_cpus, usable_cpus
from tailcut.bench.roofline import Dimensions, broken, kv_bytes, read_dimensions, roofline, weight_bytes
from tailcut.errors import InputError
from tailcut.manifest import read_manifest
from tailcut.results import BandwidthPoint, Machine, Workload


def test_the_machine_is_described_without_names() -> None:
    machine = describe_machine()
    text = codec.to_json(machine)
    assert machine.cores >= 1
    assert machine.ram_bytes > 1 << 28
    assert machine.fingerprint == describe_machine().fingerprint
    host = socket.gethostname()
    assert len(host) < 4 or host not in text
    assert str(Path.home()) not in text
    assert codec.from_json(Machine, text) == machine


def test_threads_are_kept_on_separate_cores_first() -> None:
    assert set(physical_cpus()) <= set(usable_cpus())
    assert pinned_cpus(1) == physical_cpus()[:1]
    assert sorted(pinned_cpus(len(usable_cpus()))) == usable_cpus()


def test_bandwidth_is_the_best_of_its_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailcut.bench.bandwidth._buffer_bytes", lambda: 1 << 24)
    before = os.sched_getaffinity(0)
    (point,) = measure_bandwidth(1, passes=2)
    assert point.best_gb_per_s == max(point.samples_gb_per_s)
    assert 0.1 < point.best_gb_per_s < 2000  # any machine at all
    assert os.sched_getaffinity(0) == before


def test_bytes_follow_from_the_manifest(make_package: Any) -> None:
    package = make_package("p", 0.8)
    sizes = read_dimensions(package)
    assert sizes == Dimensions(100, 64, 2, 2, 16, False, 4)
    manifest = read_manifest(package)
    dense = 4 * (1_000_000 - 6400)
    assert weight_bytes(manifest, sizes, compressed=False) == dense
    # 800k weights, 640k zeros at 4 bytes, one mask bit a weight
    assert weight_bytes(manifest, sizes, compressed=True) == dense - 640_000 * 4 + 100_000
    work = Workload(prompt_tokens=8, new_tokens=2, context=100)
    assert kv_bytes(sizes, work) == 2 * 2 * 2 * 16 * 100 * 4
    assert kv_bytes(sizes, work, "float32, in place") == 2 * 2 * 2 * 16 * 100 * 4
    assert kv_bytes(sizes, work, "float16, in place") == 2 * 2 * 2 * 16 * 100 * 2


def test_an_nvidia_style_or_gpt2_config_is_understood(tmp_path: Path) -> None:
    gpt2 = {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12}
    (tmp_path / "config.json").write_text(json.dumps(gpt2))
    assert read_dimensions(tmp_path) == Dimensions(50257, 768, 12, 12, 64, True, 144)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="dimensions"):
        read_dimensions(tmp_path)


def test_a_rate_beyond_the_machine_is_broken_and_cache_is_not_memory() -> None:
    point = BandwidthPoint(1, 10.0, (10.0,))
    line = roofline(10**9, 0, estimate=False, step_ms=100.0, bandwidth=point, l3_bytes=10**6)
    assert (line.gb_per_s, line.share) == (10.0, 1.0)
    assert broken(line, "dense", point, 10**6) is None
    fast = roofline(10**9, 0, estimate=False, step_ms=50.0, bandwidth=point, l3_bytes=10**6)
    assert "refused" in str(broken(fast, "dense", point, 10**6))
    small = roofline(10**6, 0, estimate=False, step_ms=0.01, bandwidth=point, l3_bytes=10**6)
    assert small.share is None
    assert broken(small, "dense", point, 10**6) is None


def test_the_load_of_others_is_seen_and_our_own_is_not() -> None:
    # needs nothing quiet: a busy process of ours must not count, whatever others do meanwhile
    spin = [sys.executable, "-c", "import time; e = time.time() + 1.2\nwhile time.time() < e: pass"]
    own = subprocess.Popen(spin)
    counted, uncounted = OthersLoad([]), OthersLoad([own.pid])
    time.sleep(0.8)
    difference = counted.share() - uncounted.share()
    own.wait()
    # it got some share of a CPU; on a crowded machine perhaps a quarter of one
    assert difference * (os.cpu_count() or 1) > 0.15


def test_two_measurements_make_one_with_all_samples_and_the_best() -> None:
    slow, fast = BandwidthPoint(2, 20.0, (19.0, 20.0)), BandwidthPoint(2, 28.0, (28.0, 21.0))
    assert best_of((slow,), (fast,)) == (BandwidthPoint(2, 28.0, (19.0, 20.0, 28.0, 21.0)),)
