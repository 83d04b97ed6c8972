"""One file per model family, named after `model_type`: `describe(config) -> DecoderSpec`, pure arithmetic."""

from typing import Protocol

from tailcut.export.settings import Config
from tailcut.export.spec import DecoderSpec


class Family(Protocol):
    """What a family's module offers."""

    def describe(self, config: Config) -> DecoderSpec:
        """The decoder that a config describes."""
        ...
