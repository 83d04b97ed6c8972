"""The decoder on both graphs: the cache in place gives what the concatenated one gives, whatever the rows look like."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.kernels import library
from tailcut.kernels.decoder import Decoder
from tailcut.kernels.in_place import InPlace
from tailcut.kernels.package import FUSED_NAME
from tailcut.kernels.session import decoding_graph, load_session

Export = Callable[..., Path]
# Both sum float32 products in other orders, through three blocks; a wrong position, mask or cache row changes logits of
# about 10 by their own size.
CLOSE: dict[str, Any] = {"atol": 2e-4, "rtol": 2e-4}


def tokens(batch: int, count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(0, 256, (batch, count))


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen3", "gemma2"])
def pair(request: pytest.FixtureRequest, fused_package: Export) -> tuple[Decoder, Decoder]:
    """(in place, concatenated) decoders of one package; mistral has a window of 8, qwen3 norms its heads."""
    directory = fused_package(request.param)
    fused, portable = Decoder(directory, 2, kernels="require"), Decoder(directory, 2, kernels="off")
    assert (fused.cache, portable.cache) == ("in place", "concatenated")
    return fused, portable


def run(decoder: Decoder, ids: Any, mask: Any, steps: int) -> list[Any]:
    logits = decoder.prefill(ids, mask)
    found = [logits if mask is None else logits[mask.astype(bool)]]
    return found + [decoder.step(row) for row in tokens(steps, len(ids), seed=1)]


@pytest.mark.parametrize(("batch", "count", "padding"), [(1, 1, []), (1, 9, []), (3, 12, [0, 5, 11]), (2, 6, [3, 2])])
def test_in_place_equals_concatenated(
    pair: tuple[Decoder, Decoder], batch: int, count: int, padding: list[int]
) -> None:
    ids, mask = tokens(batch, count), None
    if padding:
        mask = (np.arange(count) >= np.array(padding)[:, None]).astype(np.int64)
    for got, want in zip(*(run(decoder, ids, mask, 5) for decoder in pair), strict=True):
        np.testing.assert_allclose(got, want, **CLOSE)


def test_the_cache_grows(pair: tuple[Decoder, Decoder]) -> None:
    """126 tokens fit into the first buffers, 134 do not; 250 and 260 the same for the second ones."""
    for count in (126, 250):
        for got, want in zip(*(run(decoder, tokens(2, count), None, 10) for decoder in pair), strict=True):
            np.testing.assert_allclose(got, want, **CLOSE)


def test_holes_in_the_mask(fused_package: Export) -> None:
    """Where no window counts columns, a mask may have holes anywhere."""
    pair = [Decoder(fused_package(), 1, kernels=kernels) for kernels in ("require", "off")]
    mask = np.array([[1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0]])
    for got, want in zip(*(run(decoder, tokens(2, 6), mask, 3) for decoder in pair), strict=True):
        np.testing.assert_allclose(got, want, **CLOSE)


def test_last_only_is_the_last_of_all(pair: tuple[Decoder, Decoder]) -> None:
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    for decoder in pair:
        for given in (None, mask):
            whole = decoder.prefill(tokens(2, 5), given)
            after = decoder.step(np.array([1, 2]))
            last = decoder.prefill(tokens(2, 5), given, last_only=True)
            assert last.shape == (2, 1, whole.shape[2])
            np.testing.assert_allclose(last[:, 0], whole[:, -1], **CLOSE)
            np.testing.assert_allclose(decoder.step(np.array([1, 2])), after, **CLOSE)


def test_a_new_prompt_forgets_the_old_one(pair: tuple[Decoder, Decoder]) -> None:
    for decoder in pair:
        first = run(decoder, tokens(2, 4), None, 3)
        run(decoder, tokens(1, 40, seed=3), None, 3)
        for got, want in zip(run(decoder, tokens(2, 4), None, 3), first, strict=True):
            np.testing.assert_array_equal(got, want)


def test_rewind_forgets_steps(pair: tuple[Decoder, Decoder]) -> None:
    for decoder in pair:
        decoder.prefill(tokens(1, 125))
        mark = decoder.mark()
        first = [decoder.step(np.array([token])) for token in (5, 6, 7, 8)]  # beyond 128: the buffers are replaced
        decoder.rewind(mark)
        again = [decoder.step(np.array([token])) for token in (5, 6, 7, 8)]
        np.testing.assert_allclose(again, first, **CLOSE)


def test_a_pretended_prompt_is_as_long_as_it_says(pair: tuple[Decoder, Decoder]) -> None:
    """Steps after noise run, depend on the noise alone, and leave no trace in the next prompt."""
    pretending = [decoder for decoder in pair if decoder.pretend(2, 9, seed=1)]
    assert [decoder.cache for decoder in pretending] == ["in place"]
    (decoder,) = pretending
    first = decoder.step(np.array([1, 2]))
    assert np.isfinite(first).all()
    decoder.pretend(2, 9, seed=1)
    np.testing.assert_allclose(decoder.step(np.array([1, 2])), first, **CLOSE)
    decoder.pretend(2, 9, seed=2)
    assert not np.allclose(decoder.step(np.array([1, 2])), first, **CLOSE)
    want = pair[0].prefill(tokens(1, 7))
    np.testing.assert_allclose(pair[1].prefill(tokens(1, 7)), want, **CLOSE)


def test_results_are_the_callers(pair: tuple[Decoder, Decoder]) -> None:
    """What a step or a prompt returned is not overwritten by the next."""
    for decoder in pair:
        found = [decoder.prefill(tokens(1, 3)), decoder.step(np.array([1])), decoder.prefill(tokens(1, 1))]
        kept = [array.copy() for array in found]
        decoder.step(np.array([2]))
        decoder.prefill(tokens(1, 3, seed=9))
        decoder.prefill(tokens(1, 1, seed=9))
        for array, before in zip(found, kept, strict=True):
            np.testing.assert_array_equal(array, before)


# A float16 cache rounds keys and values by up to 2^-11 of their size; that moved logits of these models (up to 5) by at
# most 1.1e-2 in the runs below.
HALF: dict[str, Any] = {"atol": 2e-2, "rtol": 0}
HALF_STEPS = 1e-3  # 1.4e-5 measured; what float32 leaves on the border between two float16 may go to either


@pytest.fixture(scope="module", params=["llama", "mistral", "gemma2"])
def half_pair(request: pytest.FixtureRequest, fused_package: Export) -> tuple[Decoder, Decoder]:
    """Decoders of the same weights with a float16 and a float32 cache, both in place."""
    kinds = ("float16", "float32")
    half, full = (Decoder(fused_package(request.param, kv_cache=kind), 2, kernels="require") for kind in kinds)
    assert (half.cache_type, full.cache_type) == kinds
    return half, full


@pytest.mark.parametrize(("batch", "count", "padding"), [(1, 1, []), (3, 12, [0, 5, 11]), (2, 126, []), (1, 250, [])])
def test_a_float16_cache_is_close(
    half_pair: tuple[Decoder, Decoder], batch: int, count: int, padding: list[int]
) -> None:
    """One token, rows of different length, and buffers that are replaced by larger ones while they are in use."""
    mask = (np.arange(count) >= np.array(padding)[:, None]).astype(np.int64) if padding else None
    runs = [run(decoder, tokens(batch, count), mask, 10) for decoder in half_pair]
    for got, want in zip(*runs, strict=True):
        np.testing.assert_allclose(got, want, **HALF)
    assert any((got != want).any() for got, want in zip(*runs, strict=True))  # it does round


def test_a_float16_cache_takes_half_the_bytes(half_pair: tuple[Decoder, Decoder]) -> None:
    models = [decoder._model for decoder in half_pair]
    for decoder in half_pair:
        decoder.prefill(tokens(2, 200))
        decoder.step(np.array([1, 2]))
    half, full = models
    assert isinstance(half, InPlace)
    assert isinstance(full, InPlace)
    assert {rows.dtype for rows in half._cache.values()} == {np.dtype(np.float16)}
    assert full.cache_bytes == 2 * half.cache_bytes == 3 * 2 * (2 * 2 * 256 * 16 * 4)  # layers, key and value, rows
    assert all(rows[:, :, 200].any() for rows in half._cache.values())  # the step's own row is there


def test_steps_continue_a_float16_prompt(half_pair: tuple[Decoder, Decoder]) -> None:
    """Prompt and steps read the same rounded rows: only the order of float32 sums differs."""
    decoder, ids = half_pair[0], tokens(2, 150)
    whole = decoder.prefill(ids)
    decoder.prefill(ids[:, :140])
    for at in range(140, 150):
        np.testing.assert_allclose(decoder.step(ids[:, at]), whole[:, at], atol=HALF_STEPS, rtol=0)


def test_rewind_and_noise_in_a_float16_cache(half_pair: tuple[Decoder, Decoder]) -> None:
    decoder = half_pair[0]
    assert decoder.pretend(1, 125, seed=3)
    mark = decoder.mark()
    first = [decoder.step(np.array([token])) for token in (5, 6, 7, 8)]
    decoder.rewind(mark)
    np.testing.assert_array_equal([decoder.step(np.array([token])) for token in (5, 6, 7, 8)], first)


def test_bad_calls_are_sentences(pair: tuple[Decoder, Decoder]) -> None:
    for decoder in pair:
        decoder.prefill(tokens(2, 3))
        with pytest.raises(InputError, match="1 tokens for 2 rows"):
            decoder.step(np.array([1]))
        with pytest.raises(InputError, match="a 1 in every row"):
            decoder.prefill(tokens(2, 3), np.array([[1, 1, 1], [0, 0, 0]]))
        decoder.step(np.array([1, 2]))  # what was refused changed nothing
    with pytest.raises(InputError, match="513 positions of this model"):
        pair[0].prefill(tokens(1, 513))
    with pytest.raises(InputError, match="run prefill first"):
        pair[0].step(np.array([1]))


def test_which_graph_is_opened(fused_package: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = fused_package()
    assert decoding_graph(directory, "auto") == decoding_graph(directory, "require") == FUSED_NAME
    assert decoding_graph(directory, "off") == "model.onnx"
    monkeypatch.setattr(library, "LIBRARY", directory / "none.so")
    assert decoding_graph(directory, "auto") == "model.onnx"
    assert Decoder(directory, 1).cache == "concatenated"
    with pytest.raises(MissingEnvironmentError, match=r"were not compiled.*engines install tailcut"):
        load_session(directory, kernels="require")
