"""The packaged texts are what their README says, and free of the trademark text of their sources."""

import hashlib
import re
from pathlib import Path

import pytest

from tailcut.texts import demo_calibration, demo_heldout
from tailcut.windows import read_text

CALIBRATION, HELDOUT = demo_calibration(), demo_heldout()
README = CALIBRATION.with_name("README.md").read_text()


@pytest.mark.parametrize("path", [CALIBRATION, HELDOUT], ids=lambda path: path.name)
def test_text_is_clean_utf8_and_matches_its_readme(path: Path) -> None:
    raw = path.read_bytes()
    text = raw.decode("utf-8")
    assert "\r" not in text
    assert not re.search(r"gutenberg|standard ebooks|copyright|<[a-z/]", text, re.IGNORECASE)
    assert hashlib.sha256(raw).hexdigest() in README
    assert str(len(raw)) in README


def test_the_two_texts_share_no_paragraph() -> None:
    first, second = (set(path.read_text().split("\n")) for path in (CALIBRATION, HELDOUT))
    shared = {line for line in first & second if len(line) > 20}  # chapter numbers are shared
    assert shared == set()


def test_lobby_reads_them() -> None:
    assert len(read_text(CALIBRATION).text) > 250_000
    assert len(read_text(HELDOUT).text) > 150_000
