"""Decoder: a model's forward pass over a cache on the CPU, as one call of the compiled library.

A small model's step in torch is mostly the price of some hundred calls, and that price is a sixth of a large one's.
Here it is one call, which computes what `Transformer` says: that is its definition, and takes its place where the
library or the model do not allow this one. Every token's sums are added up in one order, whatever is read beside it:
the result is batch-invariant, with plain weights and with packed ones.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from leanseek.kernels.invariance import is_invariant
from leanseek.kernels.packed import PANEL, Packed
from leanseek.kernels.registry import chosen, native_implementation, reference
from leanseek.kernels.stack import (
    MOST_CHANNELS,
    MOST_EXPERTS,
    MOST_GROUPS,
    Panels,
    Stack,
    panels_linear,
    run_stack,
)
from leanseek.model.attention import PACKED_ABSORB_UP_TO, LatentAttention
from leanseek.model.cache import PagedView
from leanseek.model.experts import DeepSeekMoE, Routing
from leanseek.model.grouped_attention import GroupedAttention
from leanseek.model.layers import Linear, SwiGLU
from leanseek.model.segments import Segments
from leanseek.model.transformer import Block, Transformer

# Plain weights of a model: their second copy takes a GiB at most.
MOST_WEIGHTS = 1 << 28


class Decoder:
    """A model for inference: called as the model is, with the same results but for rounding.

    Packed weights are used where they are. Plain ones are copied into panels, which all decoders of a model share, and
    copied anew whenever torch's version counters say that they have changed; writes through `.data` escape these.

    Args:
        model: for which `suits` holds.
    """

    def __init__(self, model: Transformer) -> None:
        self.model = model

    @staticmethod
    def suits(model: Transformer) -> bool:
        """Whether a model is of the kind that this is for, and the library is there."""
        config = model.config
        return (
            model.device.type == "cpu"
            and (config.family.attention == "latent" or _suitably_grouped(model))
            and config.n_routed_experts <= MOST_EXPERTS
            and config.n_group <= MOST_GROUPS
            and (config.head_dim or config.cache_width) <= MOST_CHANNELS
            and all(p.is_contiguous() and not p.is_inference() for p in model.parameters())
            and (_all_plain(model) if model.packed_bits is None else _all_packed(model))
            and chosen("decode") is not None
        )

    def __call__(
        self, tokens_T: Tensor, segments: Segments, cache: PagedView, routing: Routing | None = None
    ) -> Tensor:
        """Return the hidden states after the last norm; as `Transformer.forward`, without gradients."""
        if self.model.packed_bits is not None and not is_invariant() and max(segments.lengths) > PACKED_ABSORB_UP_TO:
            # Expanded attention is quicker for so many, and gives other bits.
            return decode_reference(self, tokens_T, segments, cache, routing, None, False)[0]
        return self._run(tokens_T, segments, cache, routing)[0]

    def decode(self, tokens_T: Tensor, segments: Segments, cache: PagedView, routing: Routing | None = None) -> Tensor:
        """Return the logits of every token at once; as `Transformer.decode`."""
        logits_TW = self._run(tokens_T, segments, cache, routing, logits=True)[1]
        assert logits_TW is not None, "they were asked for"
        return logits_TW

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Return logits_TW."""
        head = self.weights().head
        return panels_linear(hidden_TD, head) if isinstance(head, Panels) else self.model.logits(hidden_TD)

    def mtp(self, hidden_TD: Tensor, next_tokens_T: Tensor, segments: Segments, cache: PagedView) -> Tensor:
        """Return MTP hidden states; as `Transformer.mtp`."""
        return self._run(next_tokens_T, segments, cache, None, hidden_TD)[0]

    def weights(self) -> _Weights:
        """Return the model's weights as the library takes them, as they are now."""
        with _lock:
            held = _held.get(self.model)
            if held is None or held.version != held.version_now():
                held = _held[self.model] = _Weights(self.model)
            return held

    def _run(
        self,
        tokens_T: Tensor,
        segments: Segments,
        cache: PagedView,
        routing: Routing | None,
        hidden_TD: Tensor | None = None,
        logits: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        function = chosen("decode") or decode_reference
        out: tuple[Tensor, Tensor | None] = function(self, tokens_T, segments, cache, routing, hidden_TD, logits)
        return out


def _all_plain(model: Transformer) -> bool:
    parameters = list(model.parameters())
    return all(p.dtype == torch.float32 for p in parameters) and sum(p.numel() for p in parameters) <= MOST_WEIGHTS


def _suitably_grouped(model: Transformer) -> bool:
    """Whether heads share keys as the library takes them: of whole lanes, with no bias of what they give back."""
    config = model.config
    whole = config.family.attention == "grouped" and config.head_dim % PANEL == 0
    return whole and not config.attention_bias and model.packed_bits is None


def _all_packed(model: Transformer) -> bool:
    config = model.config
    widths = (config.kv_lora_rank, config.qk_nope_head_dim, config.v_head_dim)
    blocks = [block for block in model.model.layers if isinstance(block, Block)]
    return (
        not any(width % PANEL for width in widths)
        and config.qk_rope_head_dim % 2 == 0
        and all(p.dtype == torch.float32 or p is model.model.embed_tokens.weight for p in model.parameters())
        and all(block.self_attn.kv_b_proj.packed is not None for block in blocks)
    )


class _Weights:
    """A model's weights as the library takes them, the MTP layer's apart."""

    def __init__(self, model: Transformer) -> None:
        self._sources = [*model.parameters(), *model.buffers()]
        self._packed = [one for one in model.modules() if isinstance(one, Linear) and one.packed is not None]
        self.version = self.version_now()
        config = model.config
        blocks = [block for block in model.model.layers if isinstance(block, Block)]
        experts = bool(config.n_routed_experts)
        store_dtype = torch.float32 if model.packed_bits is None else torch.bfloat16
        self.head = _weight(model.lm_head)
        shape = {
            "dim": config.hidden_size,
            "heads": config.num_attention_heads,
            "query_rank": config.q_lora_rank or 0,
            "nope": config.qk_nope_head_dim,
            "rope": config.rope_dim,
            "value": config.head_dim or config.v_head_dim,
            "latent": config.kv_lora_rank,
            "shared": config.num_key_value_heads if config.family.attention == "grouped" else 0,
            "experts": config.n_routed_experts or 0,
            "per_token": config.num_experts_per_tok if experts else 0,
            "groups": 1 if config.topk_method == "greedy" or not experts else config.n_group,
            "best_groups": config.topk_group if experts else 0,
            "group_best": 2 if config.topk_method == "noaux_tc" else 1,
            "expert_width": config.moe_intermediate_size if experts else 0,
            "vocabulary": config.vocab_size,
            "softmax": config.scoring_func == "softmax",
            "normalised": config.norm_topk_prob,
            "routed_scale": config.routed_scaling_factor,
            "eps": config.rms_norm_eps,
            "embedding": model.model.embed_tokens.weight,
            "head": self.head,
        }
        main = config.num_hidden_layers
        self.main = Stack(
            [_layer(block) for block in blocks[:main]],
            {**shape, "first": 0, "norm": model.model.norm.weight, "scale": _scale(blocks[0])},
            store_dtype,
        )
        self.mtp: Stack | None = None
        if (last := model.mtp_layer) is not None:
            join = {
                "first": main,
                "join": _weight(last.eh_proj),
                "join_embedding_norm": last.enorm.weight,
                "join_hidden_norm": last.hnorm.weight,
                "norm": last.shared_head.norm.weight,
                "scale": _scale(last),
            }
            self.mtp = Stack([_layer(last)], {**shape, **join}, store_dtype)

    def version_now(self) -> int:
        """Return what changes when a weight does."""
        return sum([source._version for source in self._sources])

    def learns(self) -> bool:
        """Whether a packed weight has got a low-rank update beside it, which the library does not know."""
        return any([one.low_rank is not None for one in self._packed])


_held: WeakKeyDictionary[Transformer, _Weights] = WeakKeyDictionary()
_lock = threading.Lock()


@reference("decode")
def decode_reference(
    decoder: Decoder,
    tokens_T: Tensor,
    segments: Segments,
    cache: PagedView,
    routing: Routing | None,
    hidden_TD: Tensor | None,
    logits: bool,
) -> tuple[Tensor, Tensor | None]:
    """Call the model itself: it defines the op; with hidden states, its MTP layer."""
    if hidden_TD is None:
        out_TD = decoder.model(tokens_T, segments, cache, routing)
    else:
        out_TD = decoder.model.mtp(hidden_TD, tokens_T, segments, cache, routing)
    return out_TD, decoder.model.logits(out_TD) if logits else None


@native_implementation("decode")
def _decode(
    variant: str,
    decoder: Decoder,
    tokens_T: Tensor,
    segments: Segments,
    cache: PagedView,
    routing: Routing | None,
    hidden_TD: Tensor | None,
    logits: bool,
) -> tuple[Tensor, Tensor | None]:
    assert segments.prefixes is None, "texts over a cache continue what it holds"
    weights = decoder.weights()
    if weights.learns():
        return decode_reference(decoder, tokens_T, segments, cache, routing, hidden_TD, logits)
    stack = weights.main if hidden_TD is None else weights.mtp
    assert stack is not None, "callers ask `mtp_layer` first"
    texts = len(segments.lengths)
    starts_S = None if segments.tokens == texts else torch.tensor((*segments.starts, segments.tokens))
    out_TD, logits_TW, chosen_TNK = run_stack(
        variant,
        stack,
        tokens_T,
        starts_S,
        segments.first_positions_S,
        cache.pages(texts),
        cache.store,
        decoder.model.turns_up_to(segments.longest, cache.store.device),
        hidden_TD=hidden_TD,
        logits=logits,
        routing=routing is not None,
    )
    if routing is not None and chosen_TNK is not None:
        routing.experts += chosen_TNK.unbind(1)
    return out_TD, logits_TW


def _scale(block: Block) -> float:
    return block.self_attn.scale


def _weight(linear: Linear) -> Panels | Packed:
    return Panels.of(linear.weight) if linear.packed is None else linear.packed


def _layer(block: Block) -> dict[str, object]:
    """Return a layer's weights under the names that `Stack` takes."""
    attention, mlp = block.self_attn, block.mlp
    layer: dict[str, object] = {
        "norm": block.input_layernorm.weight,
        "out": _weight(attention.o_proj),
        "mlp_norm": block.post_attention_layernorm.weight,
        **(_latent(attention) if isinstance(attention, LatentAttention) else _grouped(attention)),
    }
    dense = mlp if isinstance(mlp, SwiGLU) else getattr(mlp, "shared_experts", None)
    if isinstance(dense, SwiGLU):
        if dense.packed is None:
            layer["gate_up"] = Panels.halves(dense.gate_proj.weight, dense.up_proj.weight)
            layer["down"] = _weight(dense.down_proj)
            layer["width"] = dense.down_proj.weight.shape[1]
        else:
            layer["gate_up"], layer["down"] = (stack.of_stack(0) for stack in dense.packed)
            layer["width"] = dense.packed[1].inputs
    if isinstance(mlp, DeepSeekMoE):
        layer["router"] = Panels.of(mlp.gate.weight)
        if mlp.gate.e_score_correction_bias is not None:
            layer["bias"] = mlp.gate.e_score_correction_bias
        if mlp.experts.packed is None:
            layer["experts_gate_up"] = Panels.halves(*mlp.experts.gate_up_proj.chunk(2, dim=1))
            layer["experts_down"] = Panels.of(mlp.experts.down_proj)
        else:
            layer["experts_gate_up"], layer["experts_down"] = mlp.experts.packed
    return layer


def _grouped(attention: GroupedAttention) -> dict[str, object]:
    queries, *both = attention.q_proj, attention.k_proj, attention.v_proj
    layer: dict[str, object] = {
        "query": Panels.of(queries.weight),
        "latent": Panels.of(torch.cat([one.weight.detach() for one in both])),
    }
    if hasattr(attention, "q_norm"):
        layer |= {"query_norm": attention.q_norm.weight, "latent_norm": attention.k_norm.weight}
    if hasattr(queries, "bias"):
        layer["query_bias"] = queries.bias
        layer["latent_bias"] = torch.cat([one.bias.detach() for one in both])
    return layer


def _latent(attention: LatentAttention) -> dict[str, object]:
    layer: dict[str, object] = {
        "latent": _weight(attention.kv_a_proj_with_mqa),
        "latent_norm": attention.kv_a_layernorm.weight,
        **_absorbed(attention),
    }
    if hasattr(attention, "q_proj"):
        layer["query"] = _weight(attention.q_proj)
    else:
        layer["query_down"] = _weight(attention.q_a_proj)
        layer["query_norm"] = attention.q_a_layernorm.weight
        layer["query"] = _weight(attention.q_b_proj)
    return layer


def _absorbed(attention: LatentAttention) -> dict[str, object]:
    """Return what is made of `kv_b_proj`: every head's ways from its query to a latent, and from that to its value."""
    packed, heads = attention.kv_b_proj.packed, attention.heads
    if packed is None:
        up_HXL = attention.kv_b_proj.weight.view(heads, -1, attention.latent)
        key_HNL, value_HVL = up_HXL.split((attention.nope, attention.value), dim=1)
        return {"key_up": Panels.of(key_HNL.mT), "value_up": Panels.of(value_HVL)}
    keys, scales_HN = attention.absorbed_keys()
    first = attention.nope // PANEL
    codes, scales = (whole.unflatten(0, (heads, -1))[:, first:] for whole in (packed.codes, packed.scales))
    values = replace(packed, codes=codes, scales=scales, outputs=attention.value)
    return {"key_up": keys, "key_scales": scales_HN, "value_up": values}
