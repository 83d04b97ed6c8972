"""ALS's redundancy (Li et al. 2024): how alike two matrices' inputs see the tokens, as the pairs `als`.

    R_ij = <K_i, K_j> / (|K_i| |K_j|),   K = X X^T,   X [tokens, in] with rows of length 1

This is ||X_i^T X_j||_F^2 / (||X_i^T X_i||_F ||X_j^T X_j||_F), linear CKA without centring, through Gram matrices of the
tokens, so that inputs of different width can be compared: 1 is redundant, near 0 independent. The paper normalises
features without saying how; we scale every token's row to length 1, so that the few tokens with huge activations
do not decide. Tokens are a seeded sample, the same for every matrix. With n tokens independent inputs of width d
have about d / (n + d - 1), so that a small sample overstates redundancy.

The pairs `als.block` are the same between the inputs of the decoder blocks, given to each matrix of the block. The
value of a matrix is the mean of its row of `als` without itself: redundant with the rest = pruned more. Scaling a
matrix's inputs changes nothing. The published repository holds no code; this follows the paper's text.
"""

import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from tailcut.compress.metrics import Floats, Needs, Spectrum
from tailcut.errors import InputError

NEEDS: Final[Needs] = "pairs"
SIGN: Final[Literal[1, -1]] = 1
LARGEST: Final = math.inf


def features(rows: Floats) -> Floats:
    """Inputs [tokens, in] -> Gram matrix of the rows, each scaled to length 1, float32 [tokens, tokens].

    A token whose input is zero resembles none; InputError when all are.
    """
    exact = rows.astype(np.float64)
    lengths = np.sqrt(np.square(exact).sum(axis=1, keepdims=True))
    if not lengths.max() > 0.0:
        raise InputError(f"its inputs are zero in all {len(rows)} sampled tokens, so they resemble nothing")
    unit = (exact / np.where(lengths > 0.0, lengths, 1.0)).astype(np.float32)
    return np.asarray(unit @ unit.T, np.float32)


def redundancy(features: Sequence[Floats]) -> Spectrum:
    """Gram matrices [tokens, tokens] of n matrices -> R, float64 [n, n], symmetric, 1 on the diagonal.

    The same array given several times (matrices that share an input) is compared once.
    """
    first = {id(gram): gram for gram in features}
    place = {key: index for index, key in enumerate(first)}
    rows = [place[id(gram)] for gram in features]
    return np.asarray(cosines(list(first.values()))[np.ix_(rows, rows)], np.float64)


def cosines(grams: Sequence[Floats]) -> Spectrum:
    """Cosines between Gram matrices as vectors, float64 [n, n], exactly symmetric with 1 on the diagonal."""
    rows = np.stack([gram.reshape(-1) for gram in grams])
    rows /= np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1, keepdims=True)).astype(np.float32)
    # the same array on both sides makes BLAS fill one triangle only. float32: 1e-6 of a cosine, far below what
    # another sample of tokens would change
    found = np.minimum(np.asarray(rows @ rows.T, np.float64), 1.0)
    np.fill_diagonal(found, 1.0)
    return found
