"""Invariance: operators that give a row the same bits whatever rows stand beside it, asked for by a context.

Products add in another order where rows or keys are few or many, and vectorised functions round a vector's last
elements otherwise than the rest. Inside `invariant()` the operators here and in `linear` and `experts` avoid both:
rows are filled up to a least number, keys are summed in blocks of one size, and the sigmoid is made of exponential and
division. What holds for torch's products was found by measuring (docs/numerics.md); tests hold it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows from which on torch's CPU products (MKL, oneDNN) add up every row in one order: of a matrix, and of a batch.
LEAST_ROWS = 4
LEAST_BATCHED_ROWS = 8
# Keys are summed in blocks of so many, and their number is filled up to a multiple of the smaller number.
KEY_BLOCK = 128
KEY_MULTIPLE = 32


class _Asked(threading.local):
    on = False


_asked = _Asked()


@contextmanager
def invariant(on: bool = True) -> Iterator[None]:
    """Within it, this thread's operators are invariant (or not, with `on` False)."""
    before, _asked.on = _asked.on, on
    try:
        yield
    finally:
        _asked.on = before


def is_invariant() -> bool:
    """Whether this thread's operators are to be invariant."""
    return _asked.on


def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + e^-x); invariant if that is asked for."""
    return 1 / (1 + torch.exp(-x)) if _asked.on else torch.sigmoid(x)


def silu(x: Tensor) -> Tensor:
    """Return x sigmoid(x), as a new tensor; invariant if that is asked for."""
    return (x.float() / (1 + torch.exp(-x.float()))).to(x.dtype) if _asked.on else F.silu(x)


def filled_up(x: Tensor, least: int, dim: int = 0) -> Tensor:
    """Return a tensor with zeros behind it along a dimension, so that it has at least so many entries there."""
    missing = least - x.shape[dim]
    if missing <= 0:
        return x
    shape = [*x.shape]
    shape[dim] = missing
    return torch.cat((x, x.new_zeros(shape)), dim=dim)


def batched_product(a_BMK: Tensor, b_BKN: Tensor) -> Tensor:
    """Return the products of two stacks of matrices, each row of `a_BMK` on its own; [B, M, N]."""
    rows = a_BMK.shape[1]
    return torch.bmm(filled_up(a_BMK, LEAST_BATCHED_ROWS, 1), b_BKN)[:, :rows]


def invariant_attention(
    q_SMC: Tensor, keys_SKC: Tensor, values_SKV: Tensor, hidden_SMK: Tensor | None, scale: float
) -> Tensor:
    """Softmax attention whose rows do not depend on how many queries, texts or hidden keys there are.

    Args:
        q_SMC: queries.
        keys_SKC: keys; K is a multiple of `KEY_MULTIPLE`.
        values_SKV: finite also where hidden.
        hidden_SMK: True where a query may not look (it may look somewhere), in any shape that broadcasts; None: it
            may look everywhere.
        scale: factor on the scores.
    Returns:
        [S, M, V]; the softmax is taken in fp32, and blocks of keys are added up one after the other in fp32.
    """
    scores_SMK = batched_product(q_SMC, keys_SKC.transpose(1, 2)).float() * scale
    if hidden_SMK is not None:
        scores_SMK = scores_SMK.masked_fill(hidden_SMK, float("-inf"))
    shares_SMK = torch.softmax(scores_SMK, dim=-1).to(values_SKV.dtype)
    total: Tensor | None = None
    for start in range(0, keys_SKC.shape[1], KEY_BLOCK):
        end = start + KEY_BLOCK
        part = batched_product(shares_SMK[:, :, start:end], values_SKV[:, start:end]).float()
        total = part if total is None else total.add_(part)
    assert total is not None, "a text has a token at least"
    return total.to(values_SKV.dtype)
