"""A cache of keys and values for decoding many sequences of one length: allocated once, read as views."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import CacheLayerMixin


class Growing(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, allocated for `length` positions; `update` answers with views of what is written."""

    is_sliding = False

    def __init__(self, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length, self.written = length, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, heads, _, width = key_states.shape
        self.keys = key_states.new_empty(batch, heads, self.length, width)
        self.values = value_states.new_empty(batch, heads, self.length, int(value_states.shape[-1]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """[batch, heads, new, width] twice -> the same of everything so far."""
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.keys, self.values
        if keys is None or values is None:
            raise ValueError("no cache was allocated")
        end = self.written + int(key_states.shape[-2])
        keys[:, :, self.written : end] = key_states
        values[:, :, self.written : end] = value_states
        self.written = end
        return keys[:, :, :end], values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.written + query_length, 0

    def get_seq_length(self) -> int:
        return self.written

    def get_max_length(self) -> int:
        return self.length

    def get_max_cache_shape(self) -> int:  # what transformers 5.0 calls it
        return self.length
