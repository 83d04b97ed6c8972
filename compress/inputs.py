"""What every matrix of the dense model sees, one block at a time: input energies and a sample of the inputs.

The calibration text runs through the model as it is, nothing is pruned on the way (OWL's first pass). Each block
runs once: hooks note the inputs of its linears while its output becomes the input of the next.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tailcut.compress.blocks import open_stream, watched
from tailcut.compress.discovery import Linear
from tailcut.compress.metrics import Floats, Spectrum
from tailcut.compress.resident import Weights
from tailcut.compress.statistics import Accumulator
from tailcut.errors import InputError
from tailcut.windows import Tokens

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Seen:
    """Inputs of one block's linears, by module name: energy float64 [in], sampled rows float32 [tokens, in].

    `block` is the same sample of what goes into the block itself. Rows are empty when no tokens were asked for.
    """

    energy: Mapping[str, Spectrum]
    rows: Mapping[str, Floats] = field(default_factory=dict)
    block: Floats | None = None


class RowSample:
    """The rows at fixed places of everything that goes by, in order. `add` inputs [..., in], any float dtype."""

    def __init__(self, places: Places) -> None:
        self._places, self._passed = places, 0
        self._parts: list[Floats] = []

    def add(self, inputs: Tensor) -> None:
        """The next inputs of the stream."""
        rows = inputs.detach().flatten(0, -2)
        first, last = np.searchsorted(self._places, [self._passed, self._passed + len(rows)])
        here = torch.from_numpy(self._places[first:last] - self._passed).to(rows.device)
        self._parts.append(rows[here].float().cpu().numpy())
        self._passed += len(rows)

    def rows(self) -> Floats:
        """float32 [places, in]."""
        return np.concatenate(self._parts)


class DenseInputs:
    """The stream of a dense model, and what its linears see of it. `advance` each block in order."""

    def __init__(self, weights: Weights, tokens: Tokens, sampled: int, seed: int) -> None:
        """Token windows [windows, length]; `sampled` tokens (0: none) are drawn from all of them by `seed`."""
        self._weights = weights
        weights.load_rest()
        self._stream, self._length = open_stream(weights, tokens), tokens.shape[1]
        count = min(sampled, tokens.size)
        self._places = np.sort(np.random.default_rng(seed).permutation(tokens.size)[:count])

    def advance(self, index: int, linears: Sequence[Linear]) -> Seen:
        """What the linears of block `index` see; the stream then stands in front of the next block."""
        device = self._weights.device
        energies = {linear.name: Accumulator(linear.shape[1], "norms", device) for linear in linears}
        samples = {linear.name: RowSample(self._places) for linear in linears} if self._places.size else {}
        block_sample = self._block_rows()
        prefix = self._weights.skeleton.block_prefix(index)

        def receive(name: str) -> Callable[[Tensor], None]:
            def note(inputs: Tensor) -> None:
                # OPT flattens sequences in front of its MLP; blocks compare energies of all their matrices
                energies[name].add(inputs, inputs[..., 0].numel() // self._length)
                if name in samples:
                    samples[name].add(inputs)

            return note

        with (
            self._weights.block(index) as block,
            watched(block, {n.removeprefix(prefix): receive(n) for n in energies}),
        ):
            self._stream.advance(index, block)
        rows = {name: sample.rows() for name, sample in samples.items() if energies[name].sequences}
        return Seen({name: _energy(name, sums) for name, sums in energies.items()}, rows, block_sample)

    def _block_rows(self) -> Floats | None:
        if not self._places.size:
            return None
        sample = RowSample(self._places)
        for hidden in self._stream.batches:
            sample.add(hidden)
        return sample.rows()


def _energy(name: str, sums: Accumulator) -> Spectrum:
    energy = sums.result().energy
    if sums.sequences == 0 or energy is None:
        raise InputError(f"{name}: saw no calibration input; this family calls its linears in an unknown way")
    values = energy.cpu().numpy().astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{name}: its inputs overflow or are not numbers on the calibration text")
    return np.asarray(values, np.float64)
