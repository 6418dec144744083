"""Multi-head latent attention: expanded for training and prefill, absorbed for decoding over the cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanseek.kernels.attention import absorbed_attention
from leanseek.kernels.causal import causal_attention, learns_natively
from leanseek.kernels.flash import flash_attention
from leanseek.kernels.invariance import batched_product, is_invariant
from leanseek.kernels.packed import Packed, packed_linear, transposed
from leanseek.kernels.rope import rotate, yarn_mscale
from leanseek.model.cache import CacheView
from leanseek.model.config import ModelConfig
from leanseek.model.indexer import Indexed, Indexer
from leanseek.model.layers import Linear, RMSNorm
from leanseek.model.packing import attend_invariant, attend_packed, attend_rows, in_rows, out_of_rows, read_invariant
from leanseek.model.segments import Segments

# Where absorbed and expanded attention over a cache cross, over where their multiplications do (bench/absorbed.py, two
# Zen 5 cores): torch fuses attention on a CPU only where keys and values are equally wide, as in the laptop model.
MEASURED_FUSED, MEASURED_UNFUSED = 2 / 3, 3.0
# The same with packed weights, whose rebuilding is an int8 product and whose expanded attention is native.
PACKED_ABSORB_UP_TO = 16


class LatentAttention(nn.Module):
    """MLA: keys and values are rebuilt from one cached latent per token, plus one rope key for all heads.

    With an indexer (V3.2) each token attends to the `index_topk` tokens alone that the indexer scores highest.

    Source: DeepSeek-V2 report section 2.1; DeepSeek-V3 inference/model.py; DeepSeek-V3.2-Exp report section 2.1.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        heads = config.num_attention_heads
        self.heads = heads
        self.nope, self.rope, self.value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.latent = config.kv_lora_rank
        # YaRN's temperature enters squared, once for q and once for k, whatever the context length.
        self.scale = config.qk_head_dim**-0.5 * yarn_mscale(config.yarn, "mscale_all_dim") ** 2
        self.absorb_up_to = absorb_up_to(config)
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
        self.indexer = Indexer(config) if config.index_topk else None
        self._absorbed_keys: tuple[Packed, Tensor] | None = None

    @property
    def native(self) -> bool:
        """Whether its weights are packed or as files have them, for native kernels; the cache is then bf16."""
        return self.o_proj.packed is not None or self.o_proj.stored is not None

    def absorbed_keys(self) -> tuple[Packed, Tensor]:
        """Return a packed `kv_b_proj`'s keys as absorbed attention needs them, made when first asked for.

        Returns:
            A stack of H weights [L, N], the same codes with scales of 1, and these rows' scales, [H, N].
        """
        if self._absorbed_keys is None:
            packed = self.kv_b_proj.packed
            assert packed is not None, "callers look"
            self._absorbed_keys = transposed(packed, self.heads, self.nope)
        return self._absorbed_keys

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
            cache: where latents (and the indexer's keys behind them) are kept, or None.
            layer: this layer's index in the cache.
        Returns:
            [T, D].
        """
        tokens = x_TD.shape[0]
        q_latent_TQ = None if hasattr(self, "q_proj") else self.q_a_layernorm(self.q_a_proj(x_TD))
        q_TX = self.q_proj(x_TD) if q_latent_TQ is None else self.q_b_proj(q_latent_TQ)
        q_THX = q_TX.view(-1, self.heads, self.nope + self.rope)
        latent_TL, k_rope_TR = self.kv_a_proj_with_mqa(x_TD).split((self.latent, self.rope), dim=-1)
        latent_TL = self.kv_a_layernorm(latent_TL)
        sees_all = self.indexer is None or segments.longest <= self.indexer.topk
        if cache is None and sees_all and not self.native and learns_natively(q_THX, k_rope_TR, self.value):
            kv_THX = self.kv_b_proj(latent_TL).view(-1, self.heads, self.nope + self.value)
            out_THV = causal_attention(q_THX, kv_THX, k_rope_TR, rotations_TR, segments.spans_S4, self.scale)
            return self.o_proj(out_THV.view(tokens, self.heads * self.value))
        q_nope_THN, q_rope_THR = q_THX.split((self.nope, self.rope), dim=-1)
        q_rope_THR = rotate(q_rope_THR, rotations_TR)
        k_rope_TR = rotate(k_rope_TR.unsqueeze(1), rotations_TR)
        if self.native:  # as the cache keeps them, whether they come from there or not
            latent_TL, k_rope_TR = latent_TL.bfloat16().float(), k_rope_TR.bfloat16().float()
        indexed = None
        if self.indexer is not None and (cache is not None or not sees_all):
            assert q_latent_TQ is not None, "a config with an indexer has a q_lora_rank"
            indexed = self.indexer(x_TD, q_latent_TQ, rotations_TR)
        if cache is not None:
            entry = [latent_TL, k_rope_TR.squeeze(1)]
            cache.write(layer, torch.cat(entry if indexed is None else [*entry, indexed.key_TI], dim=-1), segments)
        if cache is not None and is_invariant():
            out_THV = self._invariant(q_nope_THN, q_rope_THR, segments, cache, layer, indexed)
        elif cache is None or segments.cached_lengths is None:
            out_THV = self._expanded(q_nope_THN, q_rope_THR, latent_TL, k_rope_TR, segments, indexed)
        elif max(segments.lengths) <= (self.absorb_up_to if self.kv_b_proj.packed is None else PACKED_ABSORB_UP_TO):
            out_THV = self._absorbed(q_nope_THN, q_rope_THR, segments, cache, layer, indexed)
        else:
            out_THV = self._expanded_cache(q_nope_THN, q_rope_THR, segments, cache, layer, indexed)
        return self.o_proj(out_THV.reshape(tokens, self.heads * self.value))

    def _expanded(
        self,
        q_nope_THN: Tensor,
        q_rope_THR: Tensor,
        latent_TL: Tensor,
        k_rope_TR: Tensor,
        segments: Segments,
        indexed: Indexed | None,
    ) -> Tensor:
        """Rebuild every head's keys and values, then attend as plain multi-head attention."""
        narrows = indexed is not None and segments.longest > indexed.topk
        q_THD = torch.cat((q_nope_THN, q_rope_THR), dim=-1)
        flash = self.native and not torch.is_grad_enabled()  # it has no gradient
        if flash and segments.prefixes is None and not narrows:
            return self._flash(q_THD, latent_TL, k_rope_TR.squeeze(1), segments, segments.starts)
        k_nope_THN, v_THV = self._rebuilt(latent_TL)
        k_THD = torch.cat((k_nope_THN, k_rope_TR.expand(-1, self.heads, -1)), dim=-1)
        choose = indexed.choose_packed if indexed is not None and narrows else None
        return attend_packed(q_THD, k_THD, v_THV, segments, self.scale, choose)

    def _absorbed(
        self,
        q_nope_THN: Tensor,
        q_rope_THR: Tensor,
        segments: Segments,
        cache: CacheView,
        layer: int,
        indexed: Indexed | None,
    ) -> Tensor:
        """Move the key up-projection to the query and the value's to the output; the cache stays compressed."""
        sequences, queries = len(segments.lengths), max(segments.lengths)
        q_HTL = self._through_keys(q_nope_THN.transpose(0, 1))
        q_SQHC = in_rows(torch.cat((q_HTL.transpose(0, 1), q_rope_THR), dim=-1), segments)
        entries_SKC = cache.read(layer, segments.longest, segments).to(q_SQHC.dtype)
        latents_SKC = entries_SKC[..., : self.latent + self.rope]
        if indexed is not None and segments.longest > indexed.topk:
            keys_SKI = entries_SKC[..., self.latent + self.rope :]
            if queries == 1:
                latents_SKC, hidden_SMK = indexed.gather(keys_SKI, latents_SKC, segments)
            else:
                hidden_SMK = indexed.hidden_rows(keys_SKI, segments).repeat_interleave(self.heads, dim=1)
        else:
            hidden_SMK = segments.hidden_SMK(queries, segments.longest, self.heads)
        latent_SML = absorbed_attention(
            q_SQHC.reshape(sequences, queries * self.heads, -1), latents_SKC, hidden_SMK, self.scale, self.latent
        )
        latent_THL = out_of_rows(latent_SML.view(sequences, queries, self.heads, self.latent), segments)
        return self._through_values(latent_THL.transpose(0, 1)).transpose(0, 1)

    def _invariant(
        self,
        q_nope_THN: Tensor,
        q_rope_THR: Tensor,
        segments: Segments,
        cache: CacheView,
        layer: int,
        indexed: Indexed | None,
    ) -> Tensor:
        """Absorbed attention for any number of new tokens, whose bits depend on nothing but their own text."""
        q_HTL = self._through_keys(q_nope_THN.transpose(0, 1))
        entries_SKC = read_invariant(cache, layer, segments).to(q_HTL.dtype)
        keys_SKC = entries_SKC[..., : self.latent + self.rope]
        hidden_SQK = None
        if indexed is not None and segments.longest > indexed.topk:
            index_keys_SKI = entries_SKC[:, : segments.longest, self.latent + self.rope :]
            # What lies behind the longest text is hidden from all.
            beyond = entries_SKC.shape[1] - segments.longest
            hidden_SQK = F.pad(indexed.hidden_rows(index_keys_SKI, segments), (0, beyond), value=True)
        latent_THL = attend_invariant(
            torch.cat((q_HTL.transpose(0, 1), q_rope_THR), dim=-1),
            keys_SKC.unsqueeze(2),
            keys_SKC[..., : self.latent].unsqueeze(2),
            segments,
            hidden_SQK,
            self.scale,
        )
        return self._through_values(latent_THL.transpose(0, 1)).transpose(0, 1)

    def _expanded_cache(
        self,
        q_nope_THN: Tensor,
        q_rope_THR: Tensor,
        segments: Segments,
        cache: CacheView,
        layer: int,
        indexed: Indexed | None,
    ) -> Tensor:
        """Rebuild the cached tokens' keys and values: pays where many new tokens share them."""
        entries_SKC = cache.read(layer, segments.longest, segments)
        latents_SKL, k_rope_SKR = entries_SKC[..., : self.latent + self.rope].split((self.latent, self.rope), dim=-1)
        narrows = indexed is not None and segments.longest > indexed.topk
        q_THD = torch.cat((q_nope_THN, q_rope_THR), dim=-1)
        if self.native and not narrows:
            latent_KL, k_rope_KR = latents_SKL.flatten(0, 1).float(), k_rope_SKR.flatten(0, 1).float()
            starts = range(0, latent_KL.shape[0], entries_SKC.shape[1])
            return self._flash(q_THD, latent_KL, k_rope_KR, segments, starts)
        k_nope, v = self._rebuilt(latents_SKL.reshape(-1, self.latent))
        rows = (*entries_SKC.shape[:2], self.heads)
        k_SKHD = torch.cat((k_nope.view(*rows, -1), k_rope_SKR.unsqueeze(2).expand(*rows, -1)), dim=-1)
        if indexed is not None and narrows:
            visible_SQK = ~indexed.hidden_rows(entries_SKC[..., self.latent + self.rope :], segments)
        else:
            visible_SQK = segments.visible_SQK()
        return attend_rows(q_THD, k_SKHD, v.reshape(*rows, -1), visible_SQK, segments, self.scale)

    def _flash(
        self, q_THD: Tensor, latent_KL: Tensor, k_rope_KR: Tensor, segments: Segments, key_starts: Sequence[int]
    ) -> Tensor:
        """Attend over rebuilt keys and values by bf16 kernels; `key_starts`: where each text's keys begin."""
        kv_KHX = self.kv_b_proj(latent_KL).view(-1, self.heads, self.nope + self.value)
        spans = zip(segments.starts, segments.lengths, key_starts, segments.first_positions, strict=True)
        return flash_attention(q_THD, kv_KHX, k_rope_KR, torch.tensor(list(spans)), self.scale)

    def _through_keys(self, q_HTN: Tensor) -> Tensor:
        """Apply the keys' up-projection to queries instead: [H, T, L]."""
        if self.kv_b_proj.packed is None:
            up_HNL = self.kv_b_proj.weight.view(self.heads, -1, self.latent)[:, : self.nope]
            return batched_product(q_HTN, up_HNL) if is_invariant() else torch.bmm(q_HTN, up_HNL)
        keys, scales_HN = self.absorbed_keys()
        scaled_HTN = q_HTN * scales_HN.unsqueeze(1)
        return torch.stack([packed_linear(scaled_HTN[h], keys.of_stack(h)) for h in range(self.heads)])

    def _through_values(self, latent_HTL: Tensor) -> Tensor:
        """Apply the values' up-projection to mixed latents: [H, T, V]."""
        packed = self.kv_b_proj.packed
        if packed is None:
            up_HLV = self.kv_b_proj.weight.view(self.heads, -1, self.latent)[:, self.nope :].transpose(1, 2)
            return batched_product(latent_HTL, up_HLV) if is_invariant() else torch.bmm(latent_HTL, up_HLV)
        firsts = range(self.nope, packed.outputs, self.nope + self.value)
        return torch.stack(
            [packed_linear(latent_HTL[h], packed.rows(first, self.value)) for h, first in enumerate(firsts)]
        )

    def _rebuilt(self, latent_TL: Tensor) -> tuple[Tensor, Tensor]:
        """Return every head's keys without position and values, [T, H, N] and [T, H, V]."""
        kv_THX = self.kv_b_proj(latent_TL).view(-1, self.heads, self.nope + self.value)
        k_nope_THN, v_THV = kv_THX.split((self.nope, self.value), dim=-1)
        return k_nope_THN, v_THV


def absorb_up_to(config: ModelConfig) -> int:
    """Return the most new tokens of a text for which absorbed attention over its cache is quicker.

    Rebuilding a cached token's keys and values costs L (N + V) multiplications a head once; an absorbed query costs
    (2 L + R) - (N + R + V) a head and key more than an expanded one. The crossing that this gives is moved to where
    `bench/absorbed.py` found it, which depends on whether torch has a fused operator for the expanded form.
    """
    rebuilding = config.kv_lora_rank * (config.qk_nope_head_dim + config.v_head_dim)
    more = 2 * config.kv_lora_rank - config.qk_nope_head_dim - config.v_head_dim
    if more <= 0:
        return config.max_position_embeddings
    fused = config.qk_head_dim == config.v_head_dim
    return int(rebuilding / more * (MEASURED_FUSED if fused else MEASURED_UNFUSED))
