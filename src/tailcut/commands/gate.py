"""`tailcut gate`: pass, fail or inconclusive, from a result file and limits."""

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailcut import codec
from tailcut.errors import EXIT_GATE_FAILED, InputError

if TYPE_CHECKING:
    from tailcut.bench.checks import Subject
    from tailcut.bench.policy import Limit, Policy
    from tailcut.results import Verdict


def command(
    result: Annotated[Path | None, typer.Argument(help="A result of `tailcut bench` or `tailcut run`.")] = None,
    policy: Annotated[
        Path | None, typer.Option(help="A policy file (YAML): limits, per engine where wanted; docs/gate.md.")
    ] = None,
    min_speedup: Annotated[float | None, typer.Option(help="Decode speedup over dense, at least.")] = None,
    max_ppl_ratio: Annotated[float | None, typer.Option(help="Perplexity over dense, at most.")] = None,
    max_ttft_ratio: Annotated[float | None, typer.Option(help="Time to first token over dense, at most.")] = None,
    max_size_ratio: Annotated[float | None, typer.Option(help="Package bytes over dense, at most.")] = None,
    max_rss_ratio: Annotated[float | None, typer.Option(help="Peak memory over dense, at most.")] = None,
    min_sparsity: Annotated[float | None, typer.Option(help="Zeros in the block linears, at least.")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Any limit of docs/gate.md, such as max_tpot_ms=40. May be repeated."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="The one engine to judge. [default: the policy's, else the result's first]")
    ] = None,
    sparse: Annotated[
        Path | None, typer.Option(help="The package to be released: its files, masks and manifest are checked.")
    ] = None,
    dense: Annotated[Path | None, typer.Option(help="The dense package it was measured against.")] = None,
    tasks: Annotated[Path | None, typer.Option(help="Answers of `tailcut zero-shot`, for the task limits.")] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="An earlier result of this machine, for the limits against a baseline.")
    ] = None,
    load: Annotated[
        Path | None, typer.Option(help="A result of `tailcut bench-load`, for the limits under load and the report.")
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="[FORMAT=]FILE",
            help="Write the verdict here: JSON, or as FORMAT (junit, markdown, html, github, gitlab-codequality, openmetrics, "
            "benchmark-bigger, benchmark-smaller); FORMAT=- is stdout. May be given several times.",
        ),
    ] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Check that every check fails its seeded regression.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a policy file.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON on stdout.")] = False,
) -> None:
    """Judge RESULT: a limit passes only if the whole confidence interval clears it.

    Exit code: 0 pass, 1 a limit is broken, 2 bad usage or input, 3 inconclusive (also: engine not measured).
    """
    from tailcut.bench import outputs
    from tailcut.bench.gate import judge

    if self_test or schema:
        _self_test() if self_test else _schema()
        return
    flags = {
        "min_speedup": min_speedup,
        "max_ppl_ratio": max_ppl_ratio,
        "max_ttft_ratio": max_ttft_ratio,
        "max_size_ratio": max_size_ratio,
        "max_rss_ratio": max_rss_ratio,
        "min_sparsity": min_sparsity,
    }
    wanted = outputs.wanted_all([*(output or ()), *(["json=-"] if json else [])])
    demanded = _policy(policy, {key: value for key, value in flags.items() if value is not None}, limit or [], engine)
    subject = _subject(result, sparse, dense, tasks, baseline, load)
    verdict = judge(subject, demanded)
    outputs.write(wanted, verdict, subject.result, subject.load)
    if all(one.path is not None for one in wanted):
        _show(verdict)
    raise typer.Exit(verdict.exit_code)


def _policy(path: Path | None, flags: dict[str, float], more: list[str], engine: str | None) -> "Policy":
    """The file with the flags on top; InputError if nothing is demanded at all."""
    from tailcut.bench.policy import make_policy, read_policy
    from tailcut.untrusted import parse_yaml

    stated: dict[str, Limit | None] = dict(flags)
    for text in more:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--limit {text!r} is not KEY=VALUE, such as max_tpot_ms=40")
        stated[key.strip()] = parse_yaml(value, f"--limit {key}")
    made = read_policy(path, stated, engine) if path else make_policy({"version": 1}, "options", stated, engine)
    if not made.stated:
        raise InputError("state at least one limit, such as --min-speedup 1.5; a gate without limits cannot fail")
    return made


def _subject(
    result: Path | None,
    sparse: Path | None,
    dense: Path | None,
    tasks: Path | None,
    baseline: Path | None,
    load: Path | None,
) -> "Subject":
    """What is judged, every file of it read and checked."""
    from tailcut.accuracy import ZeroShot
    from tailcut.bench.checks import Subject
    from tailcut.bench.load_file import read_load
    from tailcut.bench.result_file import read_result

    if result is None:
        raise InputError("name the result file to judge, such as `tailcut gate result.json --min-speedup 1.5`")
    return Subject(
        read_result(result),
        sparse=sparse,
        dense=dense,
        tasks=codec.load(ZeroShot, tasks) if tasks else None,
        baseline=read_result(baseline) if baseline else None,
        load=read_load(load) if load else None,
    )


def _show(verdict: "Verdict") -> None:
    several = len({check.engine for check in verdict.checks if check.engine}) > 1
    for check in verdict.checks:
        who = f"{check.engine}: " if several and check.engine else ""
        print(f"{check.outcome:<12} {who}{check.sentence}")
    print(f"verdict: {verdict.outcome} ({verdict.note})")


def _schema() -> None:
    from tailcut.bench.policy import schema

    print(jsonlib.dumps(schema(), indent=2))


def _self_test() -> None:
    from tailcut.bench.gate import self_test

    answers = self_test()
    for what, right in answers:
        print(f"{'ok' if right else 'WRONG':<6} {what}")
    if not all(right for _, right in answers):
        raise typer.Exit(EXIT_GATE_FAILED)
