"""A recovery in the report: its table, its curves, and names that came from files."""

from dataclasses import replace
from pathlib import Path

from tailcut.bench.gate import seeded_result
from tailcut.bench.page import html_page
from tailcut.bench.recovery_plots import of_recovery, recovery_table
from tailcut.bench.report import markdown_report, write_report
from tailcut.results import RecoveryPoint, RecoveryResult, RecoveryStage

EVIL = '<script>alert("x")</script> $\\frac$'
BLOCKS = tuple(RecoveryPoint(block, 100, 0.5, 0.1 + block / 10, 0.4) for block in range(3))
LOOKS = (RecoveryPoint(0, 0, 0.0, 0.9), RecoveryPoint(5, 500, 1.0, 0.3, 0.5), RecoveryPoint(9, 900, 2.0, 0.4, 0.2))
RESULT = RecoveryResult(
    stages=(
        RecoveryStage("least-squares", "relative output error", "every block is done", 0, 100, 90.0, None, BLOCKS),
        RecoveryStage("distill", "KL, nats a token", EVIL, 9, 900, 150.0, 5, LOOKS),
    ),
    teacher=EVIL, teacher_sha256="0" * 64, texts={EVIL: "1" * 64}, train_tokens=5000, heldout_tokens=256,
    heldout_kl_before=0.9, heldout_kl_after=0.3, sparsity=0.5, mask_sha256_before="a" * 64, mask_sha256_after="a" * 64,
)  # fmt: skip


def test_the_table_shows_ends_of_curves_and_what_was_kept() -> None:
    table = recovery_table(RESULT)
    layers, learnt = table.rows
    assert layers[2:7] == ("0.4000", "0.2000", "", "100", "1.5")  # means over blocks: before 0.4, after 0.1, 0.2, 0.3
    assert learnt[2:7] == ("0.9000", "0.3000", "9", "900", "2.5")  # the first look and the best, not the last
    assert "0.9000 to 0.3000" in table.note
    assert "the mask is the same" in table.note
    rounded = recovery_table(replace(RESULT, mask_sha256_after="b" * 64, new_zeros=1234))
    assert "no zero was filled, rounding added 1,234" in rounded.note
    assert recovery_table(replace(RESULT, stages=(replace(RESULT.stages[1], curve=()),))).rows[0][2:4] == ("", "")


def test_every_method_has_a_curve_and_names_are_text(tmp_path: Path) -> None:
    drawn = of_recovery(RESULT)
    assert [item.title for item in drawn] == ["Recovery by least-squares", "Recovery by distill"]
    assert all(image.startswith("data:image/svg+xml;base64,") for item in drawn for image in item.images)
    page = html_page(seeded_result(speedup=2.0), recovery=RESULT)
    assert "<script>" not in page
    assert page.count("Recovery by") == 4  # a heading and an image's text each
    assert "Recovery" not in html_page(seeded_result(speedup=2.0))
    text = markdown_report(seeded_result(speedup=2.0), None, None, recovery=RESULT)
    assert "## Recovery" in text
    assert "<script>" not in text
    write_report(tmp_path, result=seeded_result(speedup=2.0), recovery=RESULT)
    assert "Recovery by distill" in (tmp_path / "report.html").read_text()
