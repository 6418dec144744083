"""Sampling: logits -> one token a row, with its log-probability; randomness is a seed and a place, no state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_SHARE = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class SamplingRows:
    """What the rows of one sampling call ask for.

    Args:
        temperature_S: float32; 0 means greedy.
        top_p_S, min_p_S: float32; 1 and 0 leave all tokens in.
        top_k_S: int64; 0 leaves all tokens in.
        seed_S: int64.
        place_S: how many tokens the row has had; int64. Seed and place alone decide the draw, so
            a request gets the same tokens whatever else is in the batch.
        greedy, plain: whether no row draws; whether no row cuts the distribution.
        unit: whether every row's temperature is 1.
    """

    temperature_S: Tensor
    top_p_S: Tensor
    min_p_S: Tensor
    top_k_S: Tensor
    seed_S: Tensor
    place_S: Tensor
    greedy: bool
    plain: bool
    unit: bool


def sample(logits_SW: Tensor, rows: SamplingRows, draws_S: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draw one token a row.

    Args:
        logits_SW: any float dtype.
        rows: what each row asks for.
        draws_S: `uniform` of the rows' seeds and places, where the caller has it at hand.
    Returns:
        tokens_S int64, and logprobs_S float32: the token's log-probability under the softmax of
        logits / temperature (of the logits themselves for greedy rows), before any cut.
    """
    tokens_S, logprobs_S, _ = sample_within(logits_SW, rows, draws_S)
    return tokens_S, logprobs_S


def sample_within(
    logits_SW: Tensor, rows: SamplingRows, draws_S: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Draw as `sample` does, and return besides what was drawn from.

    Returns:
        tokens_S, logprobs_S, and kept_SW: the shares after the cuts, 0 where a token could not come; their sum is
        less than 1 where something was cut. None where every row took the most likely token.
    """
    logits_SW = logits_SW.float()
    if rows.greedy:
        most_S, tokens_S = logits_SW.max(dim=-1)
        return tokens_S, most_S - logits_SW.logsumexp(dim=-1), None
    if not rows.unit:
        scale_S = torch.where(rows.temperature_S > 0, rows.temperature_S, 1.0)
        logits_SW = logits_SW / scale_S[:, None]
    shares_SW = torch.softmax(logits_SW, dim=-1)
    kept_SW = shares_SW if rows.plain else _cut(shares_SW, rows)
    reach_SW = kept_SW.cumsum(dim=-1)
    draws_S = uniform(rows.seed_S, rows.place_S) if draws_S is None else draws_S
    draw_S1 = draws_S[:, None] * reach_SW[:, -1:]
    tokens_S = torch.searchsorted(reach_SW, draw_S1, right=True).squeeze(1)
    tokens_S = tokens_S.clamp_(max=logits_SW.shape[1] - 1)
    most_S = None
    if not rows.unit and bool((rows.temperature_S == 0).any()):
        most_S, best_S = logits_SW.max(dim=-1)
        tokens_S = torch.where(rows.temperature_S > 0, tokens_S, best_S)
    # A share that rounds to zero is not drawn, but for a draw at the very end: its logarithm stays finite.
    logprobs_S = shares_SW.gather(1, tokens_S[:, None]).squeeze(1).clamp_(min=SMALLEST_SHARE).log_()
    if most_S is not None:  # to the bit what a call of greedy rows alone gives
        logprobs_S = torch.where(rows.temperature_S > 0, logprobs_S, most_S - logits_SW.logsumexp(dim=-1))
    return tokens_S, logprobs_S, kept_SW


def uniform(seed_S: Tensor, place_S: Tensor) -> Tensor:
    """Return a number in [0, 1) for each (seed, place): a counter-based generator.

    Source: SplitMix64 (Steele, Lea, Flood 2014); int64 products wrap, shifts are made logical by a mask.
    """
    z = seed_S * -7046029254386353131 + (place_S + 1) * -4658895280553007687
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    z = z ^ ((z >> 31) & 0x1FFFFFFFF)
    return ((z >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def _cut(shares_SW: Tensor, rows: SamplingRows) -> Tensor:
    """Zero what top-k, top-p and min-p leave out; the most likely token always stays."""
    ordered_SW, index_SW = shares_SW.sort(dim=-1, descending=True, stable=True)
    rank_W = torch.arange(shares_SW.shape[1], device=shares_SW.device)
    keep = (rows.top_k_S[:, None] == 0) | (rank_W < rows.top_k_S[:, None])
    before = ordered_SW.cumsum(dim=-1) - ordered_SW
    # The sum of all shares may round to more than 1, so "everything" is not left to the comparison.
    keep &= (before < rows.top_p_S[:, None]) | (rows.top_p_S[:, None] >= 1)
    keep &= ordered_SW >= rows.min_p_S[:, None] * ordered_SW[:, :1]
    keep[:, 0] = True
    return torch.zeros_like(shares_SW).scatter_(1, index_SW, ordered_SW * keep)
