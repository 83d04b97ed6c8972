"""Outputs are all or nothing: kills, full disks and existing directories."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tailcut import files
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.files import flat_name, new_directory, publish, require_absent, sweep, sweep_inside, write_file


def test_write_file_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_file(path, b"one")
    write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_new_directory_appears_only_when_the_block_succeeds(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_directory(out) as work:
        (work / "a").write_text("1")
        assert not out.exists()
    assert (out / "a").read_text() == "1"
    assert list(tmp_path.iterdir()) == [out]


def test_a_failed_block_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_directory(tmp_path / "out") as work:
            (work / "a").write_text("1")
            raise InputError("stop")

    with pytest.raises(InputError, match="stop"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_keeps_the_old_directory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")

    def fail() -> None:
        with new_directory(out, overwrite=True):
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert (out / "old").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_overwrite_replaces_the_whole_directory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with new_directory(out, overwrite=True) as work:
        (work / "new").write_text("new")
    assert [path.name for path in out.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [out]


def test_existing_output_is_refused_unless_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    require_absent(tmp_path / "empty")
    (tmp_path / "empty" / "x").write_text("x")
    with pytest.raises(InputError, match=r"already exists.*--overwrite"):
        require_absent(tmp_path / "empty")
    with pytest.raises(InputError, match="already exists"):
        require_absent(tmp_path / "empty" / "x")


# A child that dies by SIGKILL at the n-th rename of `publish`, as a power cut or `kill -9` would do it.
KILLED = """
import os, pathlib, signal, sys
from tailcut.files import new_directory
out, fatal, count = pathlib.Path(sys.argv[1]), int(sys.argv[2]), 0
rename = pathlib.Path.rename
def counted(self, target):
    global count
    count += 1
    if count == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
pathlib.Path.rename = counted
with new_directory(out, overwrite=True) as work:
    (work / "v").write_text("new")
"""


@pytest.mark.parametrize("fatal", [1, 2])
def test_kill_at_a_rename_never_loses_the_old_output(fatal: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "v").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(out), str(fatal)], check=False)
    assert done.returncode == -9
    sweep(out)
    assert (out / "v").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_kill_between_renames_does_not_let_the_next_run_overwrite_silently(tmp_path: Path) -> None:
    """The old output lies aside; a run without --overwrite must still find it and refuse."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "v").write_text("old")
    subprocess.run([sys.executable, "-c", KILLED, str(out), "2"], check=False)
    assert not out.exists()
    with pytest.raises(InputError, match="already exists"), new_directory(out):
        pass
    assert (out / "v").read_text() == "old"


def test_leftovers_of_killed_runs_are_swept_and_neighbours_kept(tmp_path: Path) -> None:
    (tmp_path / "out.tmp-123").mkdir()
    (tmp_path / "out.tmp-123" / "half").write_text("x")
    (tmp_path / "out.tmp-77").write_text("half a file")
    (tmp_path / "output").mkdir()
    (tmp_path / "other.tmp-5").write_text("someone else's")
    with new_directory(tmp_path / "out") as work:
        (work / "a").write_text("1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.tmp-5", "out", "output"]


def test_sweep_with_both_versions_keeps_the_published_one(tmp_path: Path) -> None:
    for name, text in (("out", "new"), ("out.tmp-old-9", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "v").write_text(text)
    sweep(tmp_path / "out")
    assert (tmp_path / "out" / "v").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_publish_flushes_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(files, "_fsync", flushed.append)
    work = tmp_path / "w"
    (work / "sub").mkdir(parents=True)
    (work / "a").write_text("1")
    (work / "sub" / "b").write_text("2")
    publish(work, tmp_path / "out")
    assert {work / "a", work / "sub" / "b", work, tmp_path} <= set(flushed)


# A real limit of the kernel, not a mock: writing past RLIMIT_FSIZE fails with EFBIG, as a full disk does with ENOSPC.
LIMITED = """
import pathlib, resource, sys
from tailcut import errors, files
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    {action}
except errors.MissingEnvironmentError as error:
    print(error.exit_code, error)
"""
ACTIONS = {
    "a file": "files.write_file(pathlib.Path(sys.argv[1]) / 'out', bytes(100_000))",
    "a directory": (
        "with files.new_directory(pathlib.Path(sys.argv[1]) / 'out') as work:\n"
        "        (work / 'big').write_bytes(bytes(100_000))"
    ),
    "a shard": (
        "import numpy as np; from tailcut.checkpoint import write_shard\n"
        "    with files.new_directory(pathlib.Path(sys.argv[1]) / 'out') as work:\n"
        "        write_shard(work / 'a.safetensors', {'w': np.zeros(100_000)})"
    ),
}


@pytest.mark.parametrize("what", ACTIONS)
def test_full_disk_is_one_sentence_and_leaves_nothing(what: str, tmp_path: Path) -> None:
    code = LIMITED.replace("{action}", ACTIONS[what])
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("4 "), done.stderr
    assert "the disk is full" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_other_system_errors_are_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), files.full_disk_is_clear(tmp_path):
        raise PermissionError(13, "no")


def test_full_disk_names_what_is_free(tmp_path: Path) -> None:
    with pytest.raises(MissingEnvironmentError, match=r"out: the disk is full \(\d+ MB free\)"):
        raise files.disk_full(tmp_path / "not" / "there" / "out")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "a\0b", "../a"])
def test_names_that_leave_their_directory(name: str) -> None:
    with pytest.raises(InputError, match="leaves its directory"):
        flat_name(name)


def test_plain_names_pass() -> None:
    assert flat_name("model.onnx.data") == "model.onnx.data"
    assert flat_name("..data") == "..data"


def test_sha256_of_a_known_value(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2 test vector
    want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_file(tmp_path / "abc") == want
    assert os.listdir(tmp_path) == ["abc"]


def test_what_a_kill_left_of_small_files_is_swept_and_nothing_else(tmp_path: Path) -> None:
    below = tmp_path / "model" / "deep"
    below.mkdir(parents=True)
    kept = ("a.json", "notes.tmp-final", ".tmp-3", "x.tmp-", "a.tmp-7.json")
    for name in (*kept, "a.json.tmp-123"):
        (below / name).write_text("x")
    (below / "b.tmp-5").mkdir()
    (tmp_path / "beside.tmp-9").write_text("x")
    sweep_inside(tmp_path / "model")
    assert {path.name for path in below.iterdir()} == {*kept, "b.tmp-5"}
    assert (tmp_path / "beside.tmp-9").exists()
