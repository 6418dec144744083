"""Decoder: a small fp32 model's forward pass over a cache on the CPU, as one call of the compiled library.

A small model's step in torch is mostly the price of some hundred calls. Here it is one, which computes what
`Transformer` says: that is its definition, and takes its place where the library or the model do not allow this one.
Every token's sums are added up in one order, whatever is read beside it: the result is batch-invariant.
"""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from leanseek.kernels.registry import chosen, native_implementation, reference
from leanseek.kernels.stack import MOST_EXPERTS, MOST_GROUPS, Panels, Stack, panels_linear, run_stack
from leanseek.model.attention import LatentAttention
from leanseek.model.cache import PagedView
from leanseek.model.experts import DeepSeekMoE, Routing
from leanseek.model.layers import SwiGLU
from leanseek.model.segments import Segments
from leanseek.model.transformer import Block, Transformer

# Weights of a model: their second copy takes a GiB at most.
MOST_WEIGHTS = 1 << 28


class Decoder:
    """A model for inference: called as the model is, with the same results but for rounding.

    Weights are copied into panels, which all decoders of a model share. They are copied anew whenever torch's version
    counters say that the model's have changed; writes through `.data` escape these.

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
            and config.family.attention == "latent"
            and config.n_routed_experts <= MOST_EXPERTS
            and config.n_group <= MOST_GROUPS
            and model.lm_head.packed is None
            and sum(p.numel() for p in model.parameters()) <= MOST_WEIGHTS
            and all(p.dtype == torch.float32 and p.is_contiguous() and not p.is_inference() for p in model.parameters())
            and chosen("decode") is not None
        )

    def __call__(
        self, tokens_T: Tensor, segments: Segments, cache: PagedView, routing: Routing | None = None
    ) -> Tensor:
        """Return the hidden states after the last norm; as `Transformer.forward`, without gradients."""
        return self._run(tokens_T, segments, cache, routing)[0]

    def decode(self, tokens_T: Tensor, segments: Segments, cache: PagedView, routing: Routing | None = None) -> Tensor:
        """Return the logits of every token at once; as `Transformer.decode`."""
        logits_TW = self._run(tokens_T, segments, cache, routing, logits=True)[1]
        assert logits_TW is not None, "they were asked for"
        return logits_TW

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Return logits_TW."""
        return panels_linear(hidden_TD, self.weights().head)

    def mtp(self, hidden_TD: Tensor, next_tokens_T: Tensor, segments: Segments, cache: PagedView) -> Tensor:
        """Return MTP hidden states; as `Transformer.mtp`."""
        return self._run(next_tokens_T, segments, cache, None, hidden_TD)[0]

    def weights(self) -> _Weights:
        """Return the model's weights in panels, as they are now."""
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


class _Weights:
    """A model's weights in panels, the MTP layer's apart."""

    def __init__(self, model: Transformer) -> None:
        self._sources = [*model.parameters(), *model.buffers()]
        self.version = self.version_now()
        config = model.config
        blocks = [block for block in model.model.layers if isinstance(block, Block)]
        self.head = Panels.of(model.lm_head.weight)
        shape = {
            "dim": config.hidden_size,
            "heads": config.num_attention_heads,
            "query_rank": config.q_lora_rank or 0,
            "nope": config.qk_nope_head_dim,
            "rope": config.qk_rope_head_dim,
            "value": config.v_head_dim,
            "latent": config.kv_lora_rank,
            "experts": config.n_routed_experts,
            "per_token": config.num_experts_per_tok,
            "groups": 1 if config.topk_method == "greedy" else config.n_group,
            "best_groups": config.topk_group,
            "group_best": 2 if config.topk_method == "noaux_tc" else 1,
            "expert_width": config.moe_intermediate_size,
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
        )
        self.mtp: Stack | None = None
        if (last := model.mtp_layer) is not None:
            join = {
                "first": main,
                "join": Panels.of(last.eh_proj.weight),
                "join_embedding_norm": last.enorm.weight,
                "join_hidden_norm": last.hnorm.weight,
                "norm": last.shared_head.norm.weight,
                "scale": _scale(last),
            }
            self.mtp = Stack([_layer(last)], {**shape, **join})

    def version_now(self) -> int:
        """Return what changes when a weight does."""
        return sum([source._version for source in self._sources])


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
    assert isinstance(block.self_attn, LatentAttention)
    return block.self_attn.scale


def _layer(block: Block) -> dict[str, object]:
    """Return a layer's weights under the names that `Stack` takes."""
    attention, mlp = block.self_attn, block.mlp
    assert isinstance(attention, LatentAttention)
    up_HXL = attention.kv_b_proj.weight.view(attention.heads, -1, attention.latent)
    key_HNL, value_HVL = up_HXL.split((attention.nope, attention.value), dim=1)
    layer: dict[str, object] = {
        "norm": block.input_layernorm.weight,
        "latent": Panels.of(attention.kv_a_proj_with_mqa.weight),
        "latent_norm": attention.kv_a_layernorm.weight,
        "key_up": Panels.of(key_HNL.mT),
        "value_up": Panels.of(value_HVL),
        "out": Panels.of(attention.o_proj.weight),
        "mlp_norm": block.post_attention_layernorm.weight,
    }
    if hasattr(attention, "q_proj"):
        layer["query"] = Panels.of(attention.q_proj.weight)
    else:
        layer["query_down"] = Panels.of(attention.q_a_proj.weight)
        layer["query_norm"] = attention.q_a_layernorm.weight
        layer["query"] = Panels.of(attention.q_b_proj.weight)
    dense = mlp if isinstance(mlp, SwiGLU) else getattr(mlp, "shared_experts", None)
    if dense is not None:
        layer["gate_up"] = Panels.in_turn(dense.gate_proj.weight, dense.up_proj.weight)
        layer["down"] = Panels.of(dense.down_proj.weight)
        layer["width"] = dense.down_proj.weight.shape[1]
    if isinstance(mlp, DeepSeekMoE):
        layer["router"] = Panels.of(mlp.gate.weight)
        if mlp.gate.e_score_correction_bias is not None:
            layer["bias"] = mlp.gate.e_score_correction_bias
        gate_EFD, up_EFD = mlp.experts.gate_up_proj.chunk(2, dim=1)
        layer["experts_gate_up"] = Panels.in_turn(gate_EFD, up_EFD)
        layer["experts_down"] = Panels.of(mlp.experts.down_proj)
    return layer
