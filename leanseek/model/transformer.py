"""Block, MTP layer and Transformer: embed -> blocks -> norm, over packed tokens; logits stand apart."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from leanseek.kernels.rope import inverse_frequencies, rotations, yarn_mscale
from leanseek.model.attention import LatentAttention
from leanseek.model.cache import CacheSpec, CacheView
from leanseek.model.config import ModelConfig
from leanseek.model.experts import DeepSeekMoE, Routing
from leanseek.model.grouped_attention import GroupedAttention
from leanseek.model.layers import Embedding, Linear, RMSNorm, SwiGLU
from leanseek.model.segments import Segments


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x); the MLP is dense or a mixture of experts."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        grouped = config.family.attention == "grouped"
        self.self_attn = GroupedAttention(config) if grouped else LatentAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: DeepSeekMoE | SwiGLU
        if config.is_moe(layer):
            self.mlp = DeepSeekMoE(config)
        else:
            self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(
        self,
        x_TD: Tensor,
        rotations_TR: Tensor,
        segments: Segments,
        cache: CacheView | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """Apply attention and MLP around the residual stream."""
        attended_TD = self.self_attn(self.input_layernorm(x_TD), rotations_TR, segments, cache, self.layer)
        x_TD, normed_TD = self.post_attention_layernorm.after(attended_TD, x_TD)
        if isinstance(self.mlp, DeepSeekMoE):
            return x_TD + self.mlp(normed_TD, routing)
        return x_TD + self.mlp(normed_TD)


class SharedHead(nn.Module):
    """The MTP layer's own norm before the head that it shares with the main model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class MTPLayer(Block):
    """Multi-token prediction: from a token's hidden state and the next token, predict the one after.

    Source: DeepSeek-V3 report section 2.2; the order in `eh_proj` (embedding first) is the checkpoint's.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size)
        self.shared_head = SharedHead(config)

    def join(self, embedded_TD: Tensor, hidden_TD: Tensor) -> Tensor:
        """Mix the next token's embedding with the hidden state; [T, D]."""
        return self.eh_proj(torch.cat((self.enorm(embedded_TD), self.hnorm(hidden_TD)), dim=-1))


class Body(nn.Module):
    """Everything under the checkpoint's `model.` prefix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        blocks: list[Block] = [Block(config, layer) for layer in range(config.num_hidden_layers)]
        if config.num_nextn_predict_layers:
            blocks.append(MTPLayer(config, config.num_hidden_layers))
        self.layers = nn.ModuleList(blocks)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """A model of any family over packed tokens; its parameter names are the checkpoint's.

    The same call trains on documents, prefills a prompt and decodes a step: `Segments` says which.

    Args:
        config: the shape. Weights are left uninitialised: `model.initialise` or a checkpoint fills them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.recompute = False  # whether training keeps only what goes into each block (`train.recompute`)
        self._rotations: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def packed_bits(self) -> int | None:
        """Bits of the packed weights' numbers; None: weights are plain."""
        return None if self.lm_head.packed is None else self.lm_head.packed.bits

    @property
    def moe_layers(self) -> list[DeepSeekMoE]:
        """The mixtures of experts of the main layers, in order."""
        main = self.model.layers[: self.config.num_hidden_layers]
        return [block.mlp for block in main if isinstance(block, Block) and isinstance(block.mlp, DeepSeekMoE)]

    @property
    def mtp_layer(self) -> MTPLayer | None:
        """The multi-token-prediction layer, where the model has one."""
        last = self.model.layers[-1]
        return last if isinstance(last, MTPLayer) else None

    def cache_specs(self) -> tuple[CacheSpec, ...]:
        """Return what each layer (the MTP layer last) stores per token."""
        head = self.lm_head
        native = head.packed is not None or head.stored is not None
        short = native or self.model.norm.weight.dtype == torch.bfloat16
        dtype = "bfloat16" if short else "float32"
        config = self.config
        name = {"latent": "latent", "sparse": "latent and index key", "grouped": "keys and values"}
        width = config.cache_width + config.index_head_dim
        return tuple(CacheSpec(name[config.family.attention], width, dtype) for _ in self.model.layers)

    def forward(
        self,
        tokens_T: Tensor,
        segments: Segments,
        cache: CacheView | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """Return the hidden states after the last norm.

        Args:
            tokens_T: token ids, int64, the segments' texts one after the other.
            segments: their lengths, prefixes and cached lengths.
            cache: where latents are written, and read if `segments.cached_lengths` is set.
            routing: records the experts chosen, or dictates them.
        Returns:
            hidden_TD.
        """
        x_TD = self.model.embed_tokens(tokens_T)
        x_TD = self.through(self.model.layers[: self.config.num_hidden_layers], x_TD, segments, cache, routing)
        out: Tensor = self.model.norm(x_TD)
        return out

    def through(
        self,
        blocks: Iterable[nn.Module],
        x_TD: Tensor,
        segments: Segments,
        cache: CacheView | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """Return what some blocks, one after the other, make of the residual stream; [T, D]."""
        turns_TR = self.turns(segments.positions_T, segments.longest)
        anew = self.recompute and cache is None and torch.is_grad_enabled()
        for block in blocks:
            if anew:
                x_TD = _recomputed(block, x_TD, turns_TR, segments, routing)
            else:
                x_TD = block(x_TD, turns_TR, segments, cache, routing)
        return x_TD

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Return logits_TW, in the weights' dtype."""
        out: Tensor = self.lm_head(hidden_TD)
        return out

    def decode(self, tokens_T: Tensor, segments: Segments, cache: CacheView, routing: Routing | None = None) -> Tensor:
        """Return the logits of every token; arguments as of `forward`."""
        return self.logits(self(tokens_T, segments, cache, routing))

    def mtp(
        self,
        hidden_TD: Tensor,
        next_tokens_T: Tensor,
        segments: Segments,
        cache: CacheView | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """Return MTP hidden states, whose `logits` predict the token after the next one.

        Args:
            hidden_TD: what `forward` (or this, when drafting further) returned for each token.
            next_tokens_T: the token that follows each.
            segments: as in `forward`.
            cache: as in `forward`; the MTP layer is its last.
            routing: records the experts chosen.
        Returns:
            [T, D], after the MTP layer's own norm.
        """
        layer = self.mtp_layer
        assert layer is not None, "callers ask `mtp_layer` first"
        x_TD = layer.join(self.model.embed_tokens(next_tokens_T), hidden_TD)
        x_TD = layer(x_TD, self.turns(segments.positions_T, segments.longest), segments, cache, routing)
        out: Tensor = layer.shared_head.norm(x_TD)
        return out

    def turns(self, positions_T: Tensor, needed: int) -> Tensor:
        """Return the rope factors of positions below `needed`; complex64, [T, R / 2]."""
        return self.turns_up_to(needed, positions_T.device).index_select(0, positions_T)

    def turns_up_to(self, needed: int, device: torch.device) -> Tensor:
        """Return the rope factors of all positions below `needed` at least, from a table that grows as needed."""
        table = self._rotations
        if table is None or table.shape[0] < needed or table.device != device:
            config = self.config
            size = max(256, 1 << (needed - 1).bit_length())
            frequencies = inverse_frequencies(
                config.rope_dim, config.rope_theta, config.rope_scaling, config.rope_kind
            ).to(device)
            magnitude = yarn_mscale(config.yarn, "mscale") / yarn_mscale(config.yarn, "mscale_all_dim")
            table = rotations(torch.arange(size, device=device), frequencies, magnitude)
            self._rotations = table
        return table


def _recomputed(
    block: nn.Module, x_TD: Tensor, rotations_TR: Tensor, segments: Segments, routing: Routing | None
) -> Tensor:
    """Apply a block of which only the input is kept; the gradient computes the rest anew.

    The second time its router must see what it saw the first time, and what it notes is noted already.
    """
    before = 0 if routing is None else len(routing.experts)
    times = 0

    def run(x_TD: Tensor) -> Tensor:
        nonlocal times
        times += 1
        own = routing
        if times > 1 and routing is not None:
            replay = routing.replay_TNK
            own = Routing(
                None if replay is None else replay[:, before : before + 1], routing.keep_scores, routing.compare
            )
        out: Tensor = block(x_TD, rotations_TR, segments, None, own)
        return out

    out: Tensor = checkpoint(run, x_TD, use_reentrant=False, preserve_rng_state=False)
    return out
