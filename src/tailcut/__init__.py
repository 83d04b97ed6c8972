"""tailcut: cut LLM weights layer by layer as their spectra allow, ship a sparse ONNX package, prove it is faster.

This package is the lobby: the frozen values that pass between the rooms (`compress`, `export`,
`kernels`, `bench`), the checkpoint and file helpers they share, and the command line. Nothing here
imports torch; a deployment image that only benches or generates never needs it.
"""

__version__ = "0.1.0"
