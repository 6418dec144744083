"""Grouped attention: heads that share keys and values, as Llama and Qwen have it, for dense students."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leanseek.kernels.invariance import is_invariant
from leanseek.kernels.rope import rotate_halves
from leanseek.model.cache import CacheView
from leanseek.model.config import ModelConfig
from leanseek.model.layers import Linear, RMSNorm
from leanseek.model.packing import attend_invariant, attend_packed, attend_rows, read_invariant
from leanseek.model.segments import Segments


class GroupedAttention(nn.Module):
    """Multi-head attention whose key-value heads serve several query heads each; keys and values are cached whole.

    Source: Ainslie et al. 2023 (arXiv 2305.13245); the norm of queries and keys is Qwen 3's.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.shared, self.width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.scale = self.width**-0.5
        bias = config.family.query_bias or config.attention_bias
        self.q_proj = Linear(config.hidden_size, self.heads * self.width, bias=bias)
        self.k_proj = Linear(config.hidden_size, self.shared * self.width, bias=bias)
        self.v_proj = Linear(config.hidden_size, self.shared * self.width, bias=bias)
        self.o_proj = Linear(self.heads * self.width, config.hidden_size, bias=config.attention_bias)
        if config.family.query_key_norm:
            self.q_norm = RMSNorm(self.width, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.width, config.rms_norm_eps)

    def forward(
        self,
        x_TD: Tensor,
        rotations_TR: Tensor,
        segments: Segments,
        cache: CacheView | None,
        layer: int,
    ) -> Tensor:
        """Attend within segments; with a cache, store the new keys and values and attend over the stored ones.

        Arguments and result as in `LatentAttention.forward`.
        """
        q_THI = self.q_proj(x_TD).view(-1, self.heads, self.width)
        k_TGI = self.k_proj(x_TD).view(-1, self.shared, self.width)
        v_TGI = self.v_proj(x_TD).view(-1, self.shared, self.width)
        if hasattr(self, "q_norm"):
            q_THI, k_TGI = self.q_norm(q_THI), self.k_norm(k_TGI)
        turned_TJI = rotate_halves(torch.cat((q_THI, k_TGI), dim=1), rotations_TR)
        q_THI, k_TGI = turned_TJI.split((self.heads, self.shared), dim=1)
        if cache is not None:
            cache.write(layer, torch.cat((k_TGI, v_TGI), dim=1).flatten(1), segments)
        if cache is not None and is_invariant():
            keys_SKGI, values_SKGI = self._parts(read_invariant(cache, layer, segments))
            out_THI = attend_invariant(q_THI, keys_SKGI, values_SKGI, segments, None, self.scale)
        elif cache is None or segments.cached_lengths is None:
            out_THI = attend_packed(q_THI, self._each(k_TGI), self._each(v_TGI), segments, self.scale)
        else:
            keys_SKGI, values_SKGI = self._parts(cache.read(layer, segments.longest, segments))
            out_THI = attend_rows(q_THI, keys_SKGI, values_SKGI, segments.visible_SQK(), segments, self.scale)
        return self.o_proj(out_THI.reshape(x_TD.shape[0], self.heads * self.width))

    def _parts(self, entries_SKC: Tensor) -> tuple[Tensor, ...]:
        """Return the keys and the values of cache entries, each [S, K, G, I]."""
        return entries_SKC.unflatten(-1, (2 * self.shared, self.width)).split(self.shared, dim=2)

    def _each(self, x: Tensor) -> Tensor:
        """Repeat the shared heads for every query head: [..., G, I] to [..., H, I]."""
        return x.repeat_interleave(self.heads // self.shared, dim=-2)
