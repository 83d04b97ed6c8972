"""vLLM on the CPU: the directory that `tailcut compress` wrote, as it is, in float32."""

from typing import Final

from tailcut.bench.clients import HF
from tailcut.bench.clients._vllm import LICENCE, RECIPE, available, launch, where

__all__ = ["LICENCE", "RECIPE", "TARGET", "available", "launch", "where"]
TARGET: Final = HF
