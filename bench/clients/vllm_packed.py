"""vLLM on the CPU: the directory that `tailcut pack --format compressed-tensors` wrote, by vLLM's own quantised products."""

from typing import Final

from tailcut.bench.clients import PACKED
from tailcut.bench.clients._vllm import LICENCE, RECIPE, available, launch, where

__all__ = ["LICENCE", "RECIPE", "TARGET", "available", "launch", "where"]
TARGET: Final = PACKED
