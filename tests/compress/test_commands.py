"""`tailcut measure` and `tailcut allocate`, as a user types them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tailcut import cli, codec, plugins
from tailcut.allocation import NM, Allocation, LayerScore, LayerScores
from tailcut.compress.measure import load_spectra
from tailcut.errors import InputError

TinyModel = Callable[..., Path]
TailcutRun = Callable[..., str]


@pytest.fixture(scope="module")
def run() -> TailcutRun:
    """run(*arguments) -> stdout; expected failures are raised as the error `main` would print."""
    if not cli.app.registered_commands:
        cli._register()

    def call(*arguments: object) -> str:
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        if result.exception is not None:
            raise result.exception
        return result.stdout

    return call


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    layers = [
        LayerScore(f"b{block}.m{m}", block, (8, 16), {"alpha_peak": 2.0 + block + m / 4})
        for block in range(3)
        for m in range(2)
    ]
    path = tmp_path / "scores.json"
    codec.save(LayerScores("fingerprint", tuple(layers), 4 * 8 * 16 * 6), path)
    return path


def test_measure_then_allocate(tiny_model: TinyModel, tmp_path: Path, run: TailcutRun) -> None:
    scores, spectra, allocation = (tmp_path / name for name in ("s.json", "s.npz", "a.json"))
    table = run(
        *("measure", tiny_model("llama"), "-o", scores, "--spectra", spectra, "--cache", tmp_path / "cache"),
        *("--metric", "alpha-peak", "--metric", "alpha_mid", "--device", "cpu"),
    )
    assert "alpha_mid" in table
    measured = codec.load(LayerScores, scores)
    assert list(load_spectra(spectra)) == [layer.name for layer in measured.layers]
    table = run("allocate", scores, "--sparsity", "0.7", "--metric", "alpha-mid", "-o", allocation)
    assert "sparsity 0.7000 over the block linears" in table
    plan = codec.load(Allocation, allocation)
    parameters = {layer.name: layer.parameters for layer in measured.layers}
    assert plan.sparsity(parameters) == pytest.approx(0.7, abs=1e-12)
    assert plan.provenance["metric"] == "alpha_mid"


def test_measure_json_is_the_scores(tiny_model: TinyModel, tmp_path: Path, run: TailcutRun) -> None:
    out = run("measure", tiny_model("llama"), "-o", tmp_path / "s.json", "--cache", tmp_path / "c", "--json")
    assert codec.from_json(LayerScores, out) == codec.load(LayerScores, tmp_path / "s.json")


def test_measure_with_text_takes_a_list_and_records_it(
    tiny_model: TinyModel, text: Path, tmp_path: Path, run: TailcutRun
) -> None:
    out = tmp_path / "s.json"
    table = run(
        *("measure", tiny_model("llama"), "-o", out, "--metric", "owl, als", "--metric", "alpha-mid"),
        *("--cache", tmp_path / "c", "--calibration", text, "--samples", "3", "--seqlen", "20", "--seed", "7"),
        *("--outlier", "4", "--tokens", "30"),
    )
    assert "owl" in table
    scores = codec.load(LayerScores, out)
    said = scores.measured
    assert said["metrics"] == "owl,als,alpha_mid"
    assert (said["calibration"], said["calibration_samples"], said["calibration_seqlen"]) == (text.name, "3", "20")
    assert (said["seed"], said["outlier"], said["tokens"]) == ("7", "4.0", "30")
    assert set(scores.pairs) == {"als", "als.block"}


def test_measure_lists_every_metric(run: TailcutRun) -> None:
    listed = {line.replace("│", " ").split()[0] for line in run("measure", "--list").splitlines() if line[1:2] == " "}
    assert set(plugins.names("tailcut.compress.metrics")) <= listed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--metric", "owl,nope"], "unknown metric 'nope'.*owl"),
        (["--metric", " , "], "no metric was named"),
        (["--metric", "owl", "--spectra", "x.npz"], "--spectra needs a metric of the spectrum, owl is none"),
        (["--metric", "owl", "--outlier", "0"], "positive multiple"),
        (["--metric", "als", "--tokens", "1"], "at least 2 tokens"),
        (["--metric", "owl", "--calibration", "absent.txt"], r"absent\.txt"),
        (["--metric", "owl", "--samples", "0"], "at least 1 sample"),
    ],
)
def test_bad_metrics_and_texts_are_one_sentence(
    arguments: list[str], sentence: str, tiny_model: TinyModel, tmp_path: Path, run: TailcutRun
) -> None:
    with pytest.raises(InputError, match=sentence):
        run("measure", tiny_model("llama"), "-o", tmp_path / "s.json", *arguments)
    assert not (tmp_path / "s.json").exists()


def test_allocate_json_is_the_allocation(scores: Path, tmp_path: Path, run: TailcutRun) -> None:
    arguments = ("--tau", "0.2", "--granularity", "mixed", "--cap", "0.9", "--json")
    out = run("allocate", scores, "--sparsity", "0.6", *arguments, "-o", tmp_path / "a.json")
    assert codec.from_json(Allocation, out) == codec.load(Allocation, tmp_path / "a.json")
    said = json.loads(out)["provenance"]
    assert (said["tau"], said["granularity"], said["cap"], said["allocator"]) == ("0.2", "mixed", "0.9", "alpha")


def test_allocate_a_pattern(scores: Path, tmp_path: Path, run: TailcutRun) -> None:
    table = run("allocate", scores, "--pattern", "1:8", "--allocator", "uniform", "-o", tmp_path / "a.json")
    # 6 of 24 shares of the whole model are prunable
    assert "sparsity 0.8750 over the block linears, 0.2188 over the whole model" in table
    plans = codec.load(Allocation, tmp_path / "a.json").plans
    assert {plan.pattern for plan in plans.values()} == {NM(1, 8)}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sparsity", "1.2"], r"sparsity must be in \[0, 1\), got 1\.2"),
        (["--sparsity", "0.7", "--cap", "0.6"], "cap of 0.6"),
        (["--sparsity", "0.7", "--cap", "1.5"], "cap must be"),
        (["--sparsity", "0.7", "--tau", "3"], "tau must be"),
        (["--sparsity", "0.7", "--granularity", "row"], "granularity must be block, matrix or mixed"),
        (
            ["--sparsity", "0.7", "--allocator", "owl9"],
            "unknown allocator 'owl9'; choose one of alpha, als, atp.*uniform",
        ),
        (["--sparsity", "0.7", "--metric", "alpha-mid"], "no value of alpha_mid"),
        (["--pattern", "2:4"], "--allocator uniform"),
        (["--pattern", "2:4", "--sparsity", "0.7", "--allocator", "uniform"], "give one of them"),
        (["--pattern", "24", "--allocator", "uniform"], "not N:M"),
        ([], "say how much to cut"),
    ],
)
def test_bad_options_are_one_sentence_and_write_nothing(
    arguments: list[str], sentence: str, scores: Path, tmp_path: Path, run: TailcutRun
) -> None:
    with pytest.raises(InputError, match=sentence):
        run("allocate", scores, *arguments, "-o", tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()


def test_outputs_are_not_overwritten_unasked(
    scores: Path, tiny_model: TinyModel, tmp_path: Path, run: TailcutRun
) -> None:
    before = scores.read_bytes()
    with pytest.raises(InputError, match="already exists"):
        run("measure", tiny_model("llama"), "-o", scores)
    with pytest.raises(InputError, match="already exists"):
        run("allocate", scores, "--sparsity", "0.5", "-o", scores)
    assert scores.read_bytes() == before
    run("allocate", scores, "--sparsity", "0.5", "-o", tmp_path / "a.json")
    run("allocate", scores, "--sparsity", "0.6", "-o", tmp_path / "a.json", "--overwrite")
    assert codec.load(Allocation, tmp_path / "a.json").provenance["sparsity"] == "0.6"


@pytest.mark.parametrize(("name", "text"), [("absent.json", None), ("broken.json", "{"), ("other.json", "{}")])
def test_a_bad_scores_file_exits_with_2_and_one_line(name: str, text: str | None, tmp_path: Path) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    command = [sys.executable, "-m", "tailcut", "allocate", str(path), "--sparsity", "0.5", "-o", str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("tailcut: ")
    assert done.stderr.count("\n") == 1
    assert name in done.stderr
    assert not (tmp_path / "a").exists()


def test_help_shows_defaults_that_are_decided_later(run: TailcutRun) -> None:
    text = " ".join(run("allocate", "--help").replace("│", " ").split())
    assert "[default: 0.1 up to 50 %, 0.3 at 70 %, 0.2 from 80 % on]" in text


def test_allocate_list_explains_every_allocator_without_scores(run: TailcutRun) -> None:
    text = run("allocate", "--list")
    heads = [line.partition("  (scores: ")[0] for line in text.splitlines() if "  (scores: " in line]
    assert tuple(heads) == plugins.names("tailcut.compress.allocators")
    assert "owl  (scores: owl; settings: spread, compat)" in text
    assert "ICML 2024. Default spread (the paper's lambda): 0.04" in " ".join(text.split())


def test_a_setting_that_the_allocator_ignores_is_refused(scores: Path, tmp_path: Path, run: TailcutRun) -> None:
    with pytest.raises(InputError, match=r"the er allocator does not read tau \(it reads no settings\)"):
        run("allocate", scores, "--sparsity", "0.5", "--allocator", "er", "--tau", "0.1", "-o", tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()


def test_settings_of_the_command_line_reach_the_allocator(scores: Path, tmp_path: Path, run: TailcutRun) -> None:
    run("allocate", scores, "--sparsity", "0.5", "--allocator", "atp", "--beta", "0.1", "-o", tmp_path / "a.json")
    plans = codec.load(Allocation, tmp_path / "a.json").plans
    assert [plan.pattern.sparsity for plan in plans.values()] == pytest.approx([0.4, 0.4, 0.5, 0.5, 0.6, 0.6])
