"""Indexer: V3.2's lightning indexer, which scores earlier tokens cheaply and keeps the few worth attending to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leanseek.kernels.rope import rotate_halves
from leanseek.kernels.sparse_index import best_scores, index_scores
from leanseek.model.config import ModelConfig
from leanseek.model.layers import LayerNorm, Linear
from leanseek.model.packing import in_rows, picked
from leanseek.model.segments import AttentionGroup, Segments

KEY_NORM_EPS = 1e-6


class Indexer(nn.Module):
    """Queries from the query latent, one key for all heads, and a weight per head.

    The rotation by a Hadamard matrix and the rounding to FP8 of DeepSeek's code are left out: the first changes no
    score, the second is there for speed (docs/numerics.md). No gradient passes: the indexer follows the attention.

    Source: DeepSeek-V3.2-Exp report section 2.1 and inference/model.py.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.q_lora_rank is not None, "the family needs it"
        self.heads, self.width, self.topk = config.index_n_heads, config.index_head_dim, config.index_topk
        self.rope = config.qk_rope_head_dim
        self.wq_b = Linear(config.q_lora_rank, self.heads * self.width)
        self.wk = Linear(config.hidden_size, self.width)
        self.k_norm = LayerNorm(self.width, KEY_NORM_EPS)
        self.weights_proj = Linear(config.hidden_size, self.heads)

    @torch.no_grad()
    def forward(self, x_TD: Tensor, q_latent_TQ: Tensor, rotations_TR: Tensor) -> Indexed:
        """Return what scoring needs of each token.

        Args:
            x_TD: normed hidden states.
            q_latent_TQ: the attention's normed query latent.
            rotations_TR: complex rope factors of the tokens' positions; here of half-split pairs.
        """
        q_THI = self._turned(self.wq_b(q_latent_TQ).view(-1, self.heads, self.width), rotations_TR)
        key_TI = self._turned(self.k_norm(self.wk(x_TD)).unsqueeze(1), rotations_TR).squeeze(1)
        weights_TH = self.weights_proj(x_TD).float() * (self.heads * self.width) ** -0.5
        return Indexed(q_THI, key_TI, weights_TH, self.topk)

    def _turned(self, x_THI: Tensor, rotations_TR: Tensor) -> Tensor:
        """Turn the first R channels; here, unlike in the attention, they stand in front."""
        turned, rest = x_THI.split((self.rope, self.width - self.rope), dim=-1)
        return torch.cat((rotate_halves(turned, rotations_TR), rest), dim=-1)


@dataclass(frozen=True, eq=False)
class Indexed:
    """The indexer's view of a call's tokens.

    Args:
        q_THI: queries of its heads.
        key_TI: keys.
        weights_TH: weight of each head, float32, scaled.
        topk: tokens that are kept.
    """

    q_THI: Tensor
    key_TI: Tensor
    weights_TH: Tensor
    topk: int

    @torch.no_grad()
    def choose_packed(self, group: AttentionGroup) -> Tensor | None:
        """Return which keys of a group of segments each query may look at; as `packing.Choose`."""
        keys, queries = group.keys_SK.shape[1], group.queries_SQ.shape[1]
        if keys <= self.topk:
            return group.visible_SQK
        visible = group.visible_SQK
        if visible is None:
            visible = torch.ones(queries, keys, dtype=torch.bool, device=group.keys_SK.device).tril()[None, None]
        scores_SQK = index_scores(
            picked(self.q_THI, group.queries_SQ),
            picked(self.key_TI, group.keys_SK),
            picked(self.weights_TH, group.queries_SQ),
        ).masked_fill(~visible.squeeze(1), float("-inf"))
        return visible & best_scores(scores_SQK, self.topk).unsqueeze(1)

    @torch.no_grad()
    def hidden_rows(self, keys_SKI: Tensor, segments: Segments) -> Tensor:
        """Return which cached tokens each new one may not look at, [S, queries, keys]."""
        scores_SQK = self._scores_rows(keys_SKI, segments)
        return scores_SQK.isneginf() | ~best_scores(scores_SQK, self.topk)

    @torch.no_grad()
    def gather(self, keys_SKI: Tensor, latents_SKC: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        """Return the kept latents of one new token a row, [S, topk, C], and which of them it may not see."""
        scores_SK = self._scores_rows(keys_SKI, segments).squeeze(1)
        # Exactly topk of a row are the best, so what nonzero finds, row by row, has this shape.
        best_SK = best_scores(scores_SK, self.topk).nonzero()[:, 1].view(-1, self.topk)
        latents = latents_SKC.gather(1, best_SK.unsqueeze(-1).expand(-1, -1, latents_SKC.shape[-1]))
        return latents, scores_SK.gather(1, best_SK).isneginf().unsqueeze(1)

    def _scores_rows(self, keys_SKI: Tensor, segments: Segments) -> Tensor:
        scores_SQK = index_scores(in_rows(self.q_THI, segments), keys_SKI, in_rows(self.weights_TH, segments))
        return scores_SQK.masked_fill(~segments.visible_SQK(), float("-inf"))
