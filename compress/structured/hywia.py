"""HyWIA: coarse and fine importance of a unit, blended by attention. A RECONSTRUCTION, not the authors' code.

"Efficient Pruning of Large Language Models with Adaptive Estimation Fusion" (arXiv 2403.10799) has no public code, and no
text that we could read states its fusion formula. What is known: dependency groups as LLM-Pruner's; a coarse importance of
whole groups and a fine one of single weights, both Taylor expansions with the Fisher information; an attention mechanism
blends them anew in every decoder layer. What we made of that, for the units u of one group of one block:

    d_w = g_w w - 1/2 F_w w^2                  expected change of the loss, sign turned
    C_u = | sum over w in u of d_w |           coarse: signs cancel within a unit
    E_u = sum over w in u of | d_w |           fine: they do not
    T   = [C / mean C; E / mean E]             two tokens of as many features as there are units
    A   = softmax(T T^T / units), row by row   dot-product attention of the two tokens on each other
    a   = mean of A's rows                     what each token receives; a_C + a_E = 1
    I   = a_C T_C + a_E T_E

The token that tells units apart more (whose squared coefficient of variation is larger) gets more of the weight. Usual
attention divides by the root of the features; with hundreds of channels that leaves all the weight on one token, so it is
divided by their number here. With both tokens normalised to one length, as in z-scores, the weights would always be equal.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from tailcut.compress.structured import Member, Needs, Settings
from tailcut.compress.structured._reduce import over_elements
from tailcut.compress.structured._taylor import mixed

NEEDS: Final[Needs] = "gradients"
SETTINGS: Final = ("blend",)


def score(members: Sequence[Member], settings: Settings) -> Tensor:
    """HyWIA, reconstructed (its authors published no code): importance of whole units and of their single weights, both by
    mixed Taylor expansion, blended by attention in every block; --blend fixes the fine one's weight (0 coarse, 1 fine).
    """
    changes = [mixed(member) for member in members]
    coarse = torch.stack([over_elements(change) for change in changes]).sum(0).abs()
    fine = torch.stack([over_elements(change.abs()) for change in changes]).sum(0)
    tokens = torch.stack([_to_mean_one(coarse), _to_mean_one(fine)])
    weights = attention(tokens) if settings.blend is None else tokens.new_tensor([1 - settings.blend, settings.blend])
    return (weights[:, None] * tokens).sum(0)


def attention(tokens: Tensor) -> Tensor:
    """Coarse and fine importances of mean one [2, units] -> their weights [2], positive, of sum one."""
    towards = (tokens @ tokens.T / tokens.shape[1]).softmax(-1)
    return towards.mean(0)


def _to_mean_one(scores: Tensor) -> Tensor:
    mean = scores.mean()
    return scores / mean if mean > 0 else torch.ones_like(scores)
