"""The public-domain prose that ships with tailcut, so that a first run needs no download.

`calibration.txt` and `heldout.txt` come from different books (see data/README.md): what calibrates is
never what scores.
"""

from importlib.resources import files
from pathlib import Path

_DATA = Path(str(files("tailcut"))) / "data"


def demo_calibration() -> Path:
    """The text named "demo" where a calibration source is asked for."""
    return _DATA / "calibration.txt"


def demo_heldout() -> Path:
    """The text named "demo" where a perplexity text is asked for."""
    return _DATA / "heldout.txt"
