"""Public-domain English prose packaged for the demo; provenance and licence are in README.md beside it.

Calibration and held-out text come from different books of different authors, so a quality figure is never
taken on text that the pruner saw.
"""

from pathlib import Path
from typing import Final

CALIBRATION: Final = Path(__file__).with_name("calibration.txt")
HELDOUT: Final = Path(__file__).with_name("heldout.txt")
