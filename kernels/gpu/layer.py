"""A Layer: the forms of one matrix that are kept on a device, for `dispatch` to choose among."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from tailcut.errors import InputError
from tailcut.kernels.gpu.bitmask_layout import Bitmask
from tailcut.kernels.gpu.layouts import TwoFour
from tailcut.kernels.gpu.tiles import TwoFourTiles, tiles_from_two_four

_CUSPARSELT_MULTIPLE: Final = 16


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """The forms of one matrix W [out, in] that are kept on a device; at least one. `cusparselt`: torch's own 2:4 tensor."""

    two_four: TwoFour | None = None
    tiles: TwoFourTiles | None = None
    dense: Tensor | None = None
    cusparselt: Tensor | None = None
    bitmask: Bitmask | None = None

    def __post_init__(self) -> None:
        shapes = {tuple(int(size) for size in form.shape) for form in self._forms()}
        if len(shapes) != 1:
            raise InputError(f"the forms of one matrix must have one shape, got {sorted(shapes) or 'none'}")
        kinds = {form.dtype for form in self._forms()}
        if len(kinds) != 1:
            raise InputError(f"the forms of one matrix must have one dtype, got {sorted(map(str, kinds))}")

    def _forms(self) -> list[TwoFour | TwoFourTiles | Tensor | Bitmask]:
        forms = (self.two_four, self.tiles, self.dense, self.cusparselt, self.bitmask)
        return [form for form in forms if form is not None]

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self._forms()[0].shape
        return int(rows), int(columns)

    @property
    def dtype(self) -> torch.dtype:
        return self._forms()[0].dtype

    @property
    def device(self) -> torch.device:
        return self._forms()[0].device

    @property
    def kind(self) -> str:
        """What is multiplied, for tables and caches: two_four_16, two_four_8, two_four_4, dense, or bitmask_16_60 (its bytes
        in % of the dense matrix's, to the nearest 5)."""
        if self.bitmask is not None:
            share = self.bitmask.nbytes / (2 * self.shape[0] * self.shape[1])
            return f"{self.bitmask.kind}_{5 * round(20 * share)}"
        if self.two_four is not None:
            return self.two_four.kind
        if self.tiles is not None:
            return f"two_four_{self.tiles.bits}"
        return "two_four_16" if self.cusparselt is not None else "dense"


def make_layer(layout: TwoFour, *, dense: Tensor | None = None, tiles: bool = True, cusparselt: bool = False) -> Layer:
    """`layout` with what else was asked for, on its device. cusparselt makes torch's 2:4 tensor (16 bits; from `dense`)."""
    fits = layout.shape[1] % 8 == 0
    sparse = None
    if cusparselt:
        if dense is None or any(size % _CUSPARSELT_MULTIPLE for size in layout.shape):
            raise InputError("cuSPARSELt's form is made from a dense copy with multiples of 16 rows and columns")
        sparse = torch.sparse.to_sparse_semi_structured(dense)
    return Layer(layout, tiles_from_two_four(layout) if tiles and fits else None, dense, sparse)
