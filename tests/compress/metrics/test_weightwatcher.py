"""WeightWatcher as an oracle. It is no dependency: these tests run where somebody installed it."""

import numpy as np
import pytest

from tailcut.compress.metrics import (
    Matrix,
    alpha,
    alpha_hat,
    entropy,
    log_alpha_norm,
    log_norm,
    log_spectral_norm,
    mp_softrank,
    rand_distance,
    spectral_norm,
    stable_rank,
)
from tailcut.compress.spectra import gram_eigenvalues, significant

weightwatcher = pytest.importorskip(
    "weightwatcher", reason="WeightWatcher is not installed (pip install weightwatcher)"
)

EXACT = {
    "alpha": alpha,
    "alpha_weighted": alpha_hat,
    "log_alpha_norm": log_alpha_norm,
    "stable_rank": stable_rank,
    "entropy": entropy,
    "log_norm": log_norm,
    "log_spectral_norm": log_spectral_norm,
    "spectral_norm": spectral_norm,
}


def test_values_equal_weightwatcher_s() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    shapes = ((150, 150), (120, 300), (260, 140))
    # rows of alternating sign on top of heavy-tailed noise: something that a shuffle destroys
    signs = [np.outer(np.tile([1.0, -1.0], shape[0] // 2), np.ones(shape[1])) for shape in shapes]
    weights = [(rng.standard_t(4, sign.shape) * 0.5 + 0.4 * sign).astype(np.float32) for sign in signs]
    layers = [torch.nn.Linear(shape[1], shape[0], bias=False) for shape in shapes]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data = torch.from_numpy(weight)
    watcher = weightwatcher.WeightWatcher(model=torch.nn.ModuleList(layers))
    table = watcher.analyze(mp_fit=True, randomize=True, plot=False, svd_method="accurate")
    for (_, row), weight in zip(table.iterrows(), weights, strict=True):
        matrix = Matrix(weight.shape, significant(gram_eigenvalues(weight)), weight, None, gram_eigenvalues)
        for column, metric in EXACT.items():
            # its SVD and our Gram matrix are both float64; it adds 1e-10 to the entropy's probabilities
            assert metric.score(matrix).value == pytest.approx(row[column], rel=1e-6), column
        # it shuffles in another way, which moves the far smaller distance between two shuffles only
        assert rand_distance.score(matrix).value == pytest.approx(row["rand_distance"], rel=0.1)
        # it fits the bulk by brute force over a smoothed density, in steps of some percent
        assert mp_softrank.score(matrix).value == pytest.approx(row["mp_softrank"], rel=0.25)
