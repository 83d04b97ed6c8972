"""`tailcut gate`: pass, fail or inconclusive, from a result file and limits."""

from pathlib import Path
from typing import Annotated

import typer

from tailcut import codec
from tailcut.errors import EXIT_GATE_FAILED, InputError


def command(
    result: Annotated[Path | None, typer.Argument(help="A result of `tailcut bench` or `tailcut run`.")] = None,
    min_speedup: Annotated[float | None, typer.Option(help="Decode speedup over dense, at least.")] = None,
    max_ppl_ratio: Annotated[float | None, typer.Option(help="Perplexity over dense, at most.")] = None,
    max_ttft_ratio: Annotated[float | None, typer.Option(help="Time to first token over dense, at most.")] = None,
    max_size_ratio: Annotated[float | None, typer.Option(help="Package bytes over dense, at most.")] = None,
    max_rss_ratio: Annotated[float | None, typer.Option(help="Peak memory over dense, at most.")] = None,
    min_sparsity: Annotated[float | None, typer.Option(help="Zeros in the block linears, at least.")] = None,
    engine: Annotated[str | None, typer.Option(help="The engine to judge. [default: the result's first]")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the verdict (JSON) here.")] = None,
    self_test: Annotated[bool, typer.Option("--self-test", help="Check that seeded bad candidates fail.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON on stdout.")] = False,
) -> None:
    """Judge RESULT: a limit passes only if the whole confidence interval clears it.

    Exit code: 0 pass, 1 a limit is broken, 2 bad usage or input, 3 inconclusive (also: engine not measured).
    """
    from tailcut.bench.gate import Limits, judge
    from tailcut.results import BenchResult

    if self_test:
        _self_test()
        return
    limits = Limits(min_speedup, max_ppl_ratio, max_ttft_ratio, max_size_ratio, max_rss_ratio, min_sparsity, engine)
    if result is None:
        raise InputError("name the result file to judge, such as `tailcut gate result.json --min-speedup 1.5`")
    if not limits.stated:
        raise InputError("state at least one limit, such as --min-speedup 1.5; a gate without limits cannot fail")
    verdict = judge(codec.load(BenchResult, result), limits)
    if output is not None:
        codec.save(verdict, output)
    if json:
        print(codec.to_json(verdict), end="")
    else:
        for check in verdict.checks:
            print(f"{check.outcome:<12} {check.sentence}")
        print(f"verdict: {verdict.outcome} ({verdict.note})")
    raise typer.Exit(verdict.exit_code)


def _self_test() -> None:
    from tailcut.bench.gate import self_test

    answers = self_test()
    for what, right in answers:
        print(f"{'ok' if right else 'WRONG':<6} {what}")
    if not all(right for _, right in answers):
        raise typer.Exit(EXIT_GATE_FAILED)
