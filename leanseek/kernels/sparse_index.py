"""Index scores: sum over the indexer's heads of weight * relu(query . key), in fp32; and which are the best."""

from __future__ import annotations

import torch
from torch import Tensor

from leanseek.kernels.invariance import batched_product, is_invariant


def index_scores(q_SQHI: Tensor, k_SKI: Tensor, weights_SQH: Tensor) -> Tensor:
    """Score every key for every query; heads are summed one after the other, so that memory holds one head's scores.

    Args:
        q_SQHI: queries, [S, queries, H, I].
        k_SKI: one key for all heads, [S, keys, I].
        weights_SQH: weight of each query's heads, float32.
    Returns:
        [S, queries, keys], float32.
    Source: DeepSeek-V3.2-Exp report equation 1.
    """
    k_SIK = k_SKI.float().transpose(1, 2)
    total_SQK = q_SQHI.new_zeros(*q_SQHI.shape[:2], k_SKI.shape[1], dtype=torch.float32)
    for head in range(q_SQHI.shape[2]):
        q_SQI = q_SQHI[:, :, head].float()
        scores_SQK = (batched_product(q_SQI, k_SIK) if is_invariant() else torch.bmm(q_SQI, k_SIK)).relu_()
        total_SQK.add_(scores_SQK.mul_(weights_SQH[:, :, head, None]))
    return total_SQK


def best_scores(scores_SQK: Tensor, count: int) -> Tensor:
    """Return which keys of each query have its `count` best scores, bool, in the scores' shape.

    Of equal scores (keys that no head looks at all score 0) the earliest are taken, so that the choice does not
    depend on how a text was cut or padded, as `topk`'s does.
    """
    if count >= scores_SQK.shape[-1]:
        return torch.ones_like(scores_SQK, dtype=torch.bool)
    least_SQ1 = scores_SQK.topk(count, dim=-1).values[..., -1:]
    better = scores_SQK > least_SQ1
    equal = scores_SQK == least_SQ1
    wanted_SQ1 = count - better.sum(-1, keepdim=True)
    return better | (equal & (equal.cumsum(-1) <= wanted_SQ1))
