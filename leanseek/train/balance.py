"""Load balancing without an auxiliary loss: the router's bias, and V3's small sequence-wise loss."""

from __future__ import annotations

import torch
from torch import Tensor

from leanseek.model.count import moe_layers
from leanseek.model.experts import Routing
from leanseek.model.segments import Segments
from leanseek.model.transformer import Block, Transformer


@torch.no_grad()
def update_bias(model: Transformer, counts: list[Tensor], rate: float) -> None:
    """Raise the bias of under-used experts and lower that of over-used ones, by `rate`.

    The change is re-centred to zero mean, so that biases do not drift together.

    Args:
        model: its MoE layers' biases are changed in place; layers that another rank has are passed over.
        counts: per MoE layer, how often each expert was chosen in the step, [E]; the MTP layer's, where that
            is one and ran, comes last.
        rate: gamma; 0 changes nothing.
    Source: DeepSeek-V3 report section 2.1.2; Wang et al. 2024 (arXiv 2408.15664).
    """
    if rate == 0:
        return
    blocks = [block for number, block in enumerate(model.model.layers) if model.config.is_moe(number)]
    main = moe_layers(model.config)
    for block, count_E in zip(blocks[: max(main, len(counts))], counts, strict=True):
        bias_E = block.mlp.gate.e_score_correction_bias if isinstance(block, Block) else None
        if bias_E is None:  # V2 is balanced by its loss alone
            continue
        direction = torch.sign(count_E.float().mean() - count_E.float())
        bias_E += rate * (direction - direction.mean())


def expert_counts(routing: Routing, experts: int) -> list[Tensor]:
    """Return per layer how often each expert was chosen; int64, [E]."""
    return [torch.bincount(chosen.reshape(-1), minlength=experts) for chosen in routing.experts]


def load_factor(counts: list[Tensor]) -> float:
    """Return the largest expert's load over the mean load, worst layer; 1.0 is perfect balance."""
    return max((float(count.max() / count.float().mean()) for count in counts), default=1.0)


def loads(counts_LE: Tensor) -> list[list[float]]:
    """Return each layer's experts' loads over their mean; 1.0 is perfect balance.

    Args:
        counts_LE: how often each layer's experts were chosen, [layers, E].
    """
    mean_L = counts_LE.float().mean(-1, keepdim=True)
    return [[round(load, 3) for load in layer] for layer in (counts_LE / mean_L).tolist()]


def sequence_balance_loss(routing: Routing, segments: Segments) -> Tensor:
    """Return V3's sequence-wise balance loss, averaged over sequences and summed over layers.

    Args:
        routing: with scores kept.
        segments: which tokens form a sequence.
    Source: DeepSeek-V3 report section 2.1.2: sum over experts of f_i P_i within one sequence.
    """
    sequences = len(segments.lengths)
    lengths_S = torch.tensor(segments.lengths, dtype=torch.float32, device=segments.segment_T.device)
    total = torch.zeros((), device=lengths_S.device)
    for chosen_TK, scores_TE in zip(routing.experts, routing.scores, strict=True):
        experts, choices = scores_TE.shape[1], chosen_TK.shape[1]
        used_TE = torch.zeros_like(scores_TE).scatter_(1, chosen_TK, 1.0)
        share_TE = scores_TE / (scores_TE.sum(-1, keepdim=True) + 1e-20)
        if segments.uniform is not None:
            used_SE = used_TE.view(sequences, -1, experts).sum(1)
            share_SE = share_TE.view(sequences, -1, experts).mean(1)
        else:
            zeros_SE = scores_TE.new_zeros(sequences, experts)
            used_SE = zeros_SE.index_add(0, segments.segment_T, used_TE)
            share_SE = zeros_SE.index_add(0, segments.segment_T, share_TE) / lengths_S[:, None]
        frequency_SE = used_SE * experts / (choices * lengths_S[:, None])
        total = total + (frequency_SE * share_SE).sum(-1).mean()
    return total
