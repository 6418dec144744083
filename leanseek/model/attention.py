"""Multi-head latent attention: expanded for training and prefill, absorbed for decoding over the cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leanseek.kernels.attention import absorbed_attention, expanded_attention
from leanseek.kernels.rope import rotate, yarn_mscale
from leanseek.model.cache import CacheView
from leanseek.model.config import ModelConfig
from leanseek.model.layers import Linear, RMSNorm
from leanseek.model.segments import Segments


class Attention(nn.Module):
    """MLA: keys and values are rebuilt from one cached latent per token, plus one rope key for all heads.

    Source: DeepSeek-V2 report section 2.1; DeepSeek-V3 inference/model.py.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        heads = config.num_attention_heads
        self.heads = heads
        self.nope, self.rope, self.value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.latent = config.kv_lora_rank
        # YaRN's temperature enters squared, once for q and once for k, whatever the context length.
        self.scale = config.qk_head_dim**-0.5 * yarn_mscale(config.yarn, "mscale_all_dim") ** 2
        if config.q_lora_rank is None:
            self.q_proj = Linear(config.hidden_size, heads * config.qk_head_dim)
        else:
            self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
            self.q_b_proj = Linear(config.q_lora_rank, heads * config.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, config.cache_width)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, config.rms_norm_eps)
        self.kv_b_proj = Linear(config.kv_lora_rank, heads * (self.nope + self.value))
        self.o_proj = Linear(heads * self.value, config.hidden_size)

    def forward(
        self,
        x_TD: Tensor,
        rotations_TR: Tensor,
        segments: Segments,
        cache: CacheView | None,
        layer: int,
    ) -> Tensor:
        """Attend within segments; with a cache, store the new latents and attend over the stored ones.

        Args:
            x_TD: normed hidden states.
            rotations_TR: complex rope factors of the tokens' positions.
            segments: what belongs together.
            cache: where latents are kept, or None.
            layer: this layer's index in the cache.
        Returns:
            [T, D].
        """
        tokens = x_TD.shape[0]
        q_nope_THN, q_rope_THR = self._queries(x_TD, rotations_TR)
        compressed = self.kv_a_proj_with_mqa(x_TD)
        latent_TL = self.kv_a_layernorm(compressed[:, : self.latent])
        k_rope_TR = rotate(compressed[:, self.latent :].unsqueeze(1), rotations_TR)
        if cache is not None:
            cache.write(layer, torch.cat((latent_TL, k_rope_TR.squeeze(1)), dim=-1), segments)
        if cache is not None and segments.cached_lengths is not None:
            out_THV = self._absorbed(q_nope_THN, q_rope_THR, segments, cache, layer)
        else:
            out_THV = self._expanded(q_nope_THN, q_rope_THR, latent_TL, k_rope_TR, segments)
        return self.o_proj(out_THV.reshape(tokens, self.heads * self.value))

    def _queries(self, x_TD: Tensor, rotations_TR: Tensor) -> tuple[Tensor, Tensor]:
        if hasattr(self, "q_proj"):
            q = self.q_proj(x_TD)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_TD)))
        q_nope_THN, q_rope_THR = q.view(-1, self.heads, self.nope + self.rope).split((self.nope, self.rope), dim=-1)
        return q_nope_THN, rotate(q_rope_THR, rotations_TR)

    def _expanded(
        self, q_nope_THN: Tensor, q_rope_THR: Tensor, latent_TL: Tensor, k_rope_TR: Tensor, segments: Segments
    ) -> Tensor:
        """Rebuild every head's keys and values, then attend as plain multi-head attention."""
        kv_THX = self.kv_b_proj(latent_TL).view(-1, self.heads, self.nope + self.value)
        k_nope_THN, v_THV = kv_THX.split((self.nope, self.value), dim=-1)
        q_THD = torch.cat((q_nope_THN, q_rope_THR), dim=-1)
        k_THD = torch.cat((k_nope_THN, k_rope_TR.expand(-1, self.heads, -1)), dim=-1)
        return _attend_packed(q_THD, k_THD, v_THV, segments, self.scale)

    def _absorbed(
        self, q_nope_THN: Tensor, q_rope_THR: Tensor, segments: Segments, cache: CacheView, layer: int
    ) -> Tensor:
        """Move the key up-projection to the query and the value's to the output; the cache stays compressed."""
        sequences, queries = len(segments.lengths), max(segments.lengths)
        up_HXL = self.kv_b_proj.weight.view(self.heads, self.nope + self.value, self.latent)
        q_HTL = torch.bmm(q_nope_THN.transpose(0, 1), up_HXL[:, : self.nope])
        q_THC = torch.cat((q_HTL.transpose(0, 1), q_rope_THR), dim=-1)
        longest = segments.longest
        latents_SKC = cache.read(layer, longest, segments)
        ragged = segments.tokens != sequences * queries
        if ragged:
            own_T = segments.positions_T - segments.first_positions_S[segments.segment_T]
            place_T = segments.segment_T * queries + own_T
            padded = q_THC.new_zeros(sequences * queries, *q_THC.shape[1:])
            q_THC = padded.index_copy_(0, place_T, q_THC)
        latent_SML = absorbed_attention(
            q_THC.reshape(sequences, queries * self.heads, -1),
            latents_SKC,
            segments.hidden_SMK(queries, longest, self.heads),
            self.scale,
            self.latent,
        )
        latent_THL = latent_SML.reshape(-1, self.heads, self.latent)
        if ragged:
            latent_THL = latent_THL.index_select(0, place_T)
        return torch.bmm(latent_THL.transpose(0, 1), up_HXL[:, self.nope :].transpose(1, 2)).transpose(0, 1)


def _attend_packed(q_THD: Tensor, k_THD: Tensor, v_THV: Tensor, segments: Segments, scale: float) -> Tensor:
    """Causal attention inside each segment and its prefix; [T, H, V]."""
    if segments.uniform is not None:
        shape = (len(segments.lengths), segments.uniform, q_THD.shape[1])
        out = expanded_attention(q_THD.view(*shape, -1), k_THD.view(*shape, -1), v_THV.reshape(*shape, -1), None, scale)
        return out.reshape(v_THV.shape)
    pieces = []
    for group in segments.groups:
        shape = (group.keys_SK.shape[0], -1, q_THD.shape[1])
        out = expanded_attention(
            q_THD.index_select(0, group.queries_SQ.reshape(-1)).view(*shape, q_THD.shape[-1]),
            k_THD.index_select(0, group.keys_SK.reshape(-1)).view(*shape, k_THD.shape[-1]),
            v_THV.index_select(0, group.keys_SK.reshape(-1)).view(*shape, v_THV.shape[-1]),
            group.visible_SQK,
            scale,
        )
        pieces.append(out.reshape(-1, *v_THV.shape[1:]))
    return torch.cat(pieces).index_select(0, segments.places_T)
