"""PackedDecoder: decoding steps of a model with packed weights as one native call each.

Its definition is `Transformer.forward`, which takes its place for prompts, where replies are to have the same bits in
any company, and where the library or the model do not allow this one.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from leanseek.kernels import native
from leanseek.kernels.flash import MOST_CHANNELS
from leanseek.kernels.invariance import is_invariant
from leanseek.kernels.packed import PANEL, Packed
from leanseek.kernels.registry import chosen, native_implementation, reference
from leanseek.model.attention import LatentAttention
from leanseek.model.cache import PagedView
from leanseek.model.experts import DeepSeekMoE, Routing
from leanseek.model.layers import SwiGLU
from leanseek.model.segments import Segments
from leanseek.model.transformer import Block, Transformer


class _Weight(ctypes.Structure):
    _fields_ = (("codes", c_void_p), ("scales", c_void_p), ("bits", c_int64))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("input_norm", "post_norm", "query_norm", "latent_norm")),
        *((name, _Weight) for name in ("query_down", "query", "latent", "keys", "keys_values", "output")),
        *((name, c_void_p) for name in ("key_scales", "router", "bias")),
        *((name, _Weight) for name in ("gate_up", "down", "shared_gate_up", "shared_down")),
        ("shared_width", c_int64),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("layers", "dim", "heads", "nope", "turned", "value", "latent")),
        *((name, c_int64) for name in ("query_rank", "experts", "per_token", "width", "groups", "top_groups")),
        *((name, c_int64) for name in ("group_best", "normalise", "softmax")),
        *((name, c_float) for name in ("eps", "scale", "routed_scale")),
        ("layer", ctypes.POINTER(_Layer)),
        ("norm", c_void_p),
        ("bits", c_int64),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("rows", c_int64),
        *((name, c_void_p) for name in ("stream", "turns", "positions", "store")),
        *((name, c_int64) for name in ("layer_stride", "block_stride", "block_tokens")),
        ("tables", c_void_p),
        ("table_width", c_int64),
        *((name, c_void_p) for name in ("chosen", "hidden")),
    )


class PackedDecoder:
    """A model for inference: called as the model is, with the same results but for rounding.

    A step in torch has some hundred operations a layer that compute little, and each costs microseconds; here they are
    loops between the products, which read the weights as fast as memory gives them.

    Args:
        model: for which `suits` holds. Its tensors are used where they are: they are to stay.
    """

    def __init__(self, model: Transformer) -> None:
        self.model = model
        config = model.config
        self._kept: list[Any] = []  # alive as long as their addresses are used
        main = [block for block in model.model.layers if isinstance(block, Block)][: config.num_hidden_layers]
        layers = (_Layer * len(main))(*(self._layer(block) for block in main))
        greedy, softmax = config.topk_method == "greedy", config.scoring_func == "softmax"
        experts = bool(config.n_routed_experts)
        self._mixtures = len(model.moe_layers)
        attention = main[0].self_attn
        assert isinstance(attention, LatentAttention)
        self._described = _Model(
            layers=len(main),
            dim=config.hidden_size,
            heads=config.num_attention_heads,
            nope=config.qk_nope_head_dim,
            turned=config.qk_rope_head_dim,
            value=config.v_head_dim,
            latent=config.kv_lora_rank,
            query_rank=config.q_lora_rank or 0,
            experts=config.n_routed_experts or 0,
            per_token=config.num_experts_per_tok if experts else 0,
            width=config.moe_intermediate_size if experts else 0,
            groups=1 if greedy or not experts else config.n_group,
            top_groups=config.topk_group if experts else 0,
            group_best=2 if config.topk_method == "noaux_tc" else 1,
            normalise=config.norm_topk_prob,
            softmax=softmax,
            eps=config.rms_norm_eps,
            scale=attention.scale,
            routed_scale=config.routed_scaling_factor,
            layer=layers,
            norm=self._address(model.model.norm.weight),
            bits=model.lm_head.packed.bits,
        )
        self._kept.append(layers)

    @staticmethod
    def suits(model: Transformer) -> bool:
        """Whether a model is of the kind that this is for, and the library is there."""
        config = model.config
        main = list(model.model.layers)[: config.num_hidden_layers]
        latent = config.family.attention == "latent" and model.lm_head.packed is not None
        if not latent or chosen("packed_decode") is None:
            return False
        widths = (config.kv_lora_rank, config.qk_nope_head_dim, config.v_head_dim)
        return (
            not any(width % PANEL for width in widths)
            and config.qk_rope_head_dim % 2 == 0
            and config.cache_width <= MOST_CHANNELS
            and all(block.self_attn.kv_b_proj.packed is not None for block in main)
            and all(isinstance(block.mlp, SwiGLU) or hasattr(block.mlp, "shared_experts") for block in main)
        )

    def __call__(
        self, tokens_T: Tensor, segments: Segments, cache: PagedView, routing: Routing | None = None
    ) -> Tensor:
        """Return the hidden states after the last norm; as `Transformer.forward`, without gradients."""
        alone = segments.cached_lengths is not None and segments.tokens == len(segments.lengths)
        function = chosen("packed_decode") if alone and not is_invariant() else None
        out: Tensor = (function or packed_decode_reference)(self, tokens_T, segments, cache, routing)
        return out

    def decode(self, tokens_T: Tensor, segments: Segments, cache: PagedView, routing: Routing | None = None) -> Tensor:
        """Return the logits of every token; as `Transformer.decode`."""
        return self.logits(self(tokens_T, segments, cache, routing))

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Return logits_TW."""
        return self.model.logits(hidden_TD)

    def mtp(self, hidden_TD: Tensor, next_tokens_T: Tensor, segments: Segments, cache: PagedView) -> Tensor:
        """Return MTP hidden states; as `Transformer.mtp`."""
        return self.model.mtp(hidden_TD, next_tokens_T, segments, cache)

    def step(
        self, variant: str, tokens_S: Tensor, segments: Segments, cache: PagedView, routing: Routing | None
    ) -> Tensor:
        """Read one token a row by an instruction set's kernels."""
        config, rows = self.model.config, tokens_S.shape[0]
        stream_SD = self.model.model.embed_tokens(tokens_S).float().contiguous()
        positions_S = segments.first_positions_S.contiguous()
        turns_SR = self.model.turns(positions_S, segments.longest).contiguous()
        store, pages_SB = cache.store, cache.pages(rows).contiguous()
        assert store.dtype == torch.bfloat16 and store.is_contiguous(), "packed models have such a cache"
        hidden_SD = torch.empty_like(stream_SD)
        experts_NSK = None
        if routing is not None:
            experts_NSK = torch.empty(self._mixtures, rows, config.num_experts_per_tok, dtype=torch.int64)
        step = _Step(
            rows=rows,
            stream=stream_SD.data_ptr(),
            turns=turns_SR.data_ptr(),
            positions=positions_S.data_ptr(),
            store=store.data_ptr(),
            layer_stride=store.stride(0),
            block_stride=store.stride(1),
            block_tokens=store.shape[2],
            tables=pages_SB.data_ptr(),
            table_width=pages_SB.shape[1],
            chosen=None if experts_NSK is None else experts_NSK.data_ptr(),
            hidden=hidden_SD.data_ptr(),
        )
        native.call("packed_decode", variant, ctypes.byref(self._described), ctypes.byref(step))
        if routing is not None and experts_NSK is not None:
            routing.experts.extend(experts_NSK.unbind(0))
        return hidden_SD

    def _layer(self, block: Block) -> _Layer:
        attention, mlp = block.self_attn, block.mlp
        assert isinstance(attention, LatentAttention)
        keys, scales_HN = attention.absorbed_keys()
        low = hasattr(attention, "q_a_proj")
        fields: dict[str, Any] = {
            "input_norm": self._address(block.input_layernorm.weight),
            "post_norm": self._address(block.post_attention_layernorm.weight),
            "latent_norm": self._address(attention.kv_a_layernorm.weight),
            "query_norm": self._address(attention.q_a_layernorm.weight) if low else None,
            "query_down": self._weight(attention.q_a_proj.packed) if low else _Weight(),
            "query": self._weight((attention.q_b_proj if low else attention.q_proj).packed),
            "latent": self._weight(attention.kv_a_proj_with_mqa.packed),
            "keys": self._weight(keys),
            "keys_values": self._weight(attention.kv_b_proj.packed),
            "output": self._weight(attention.o_proj.packed),
            "key_scales": self._address(scales_HN),
        }
        dense = mlp
        if isinstance(mlp, DeepSeekMoE):
            dense, bias_E = mlp.shared_experts, mlp.gate.e_score_correction_bias
            assert mlp.experts.packed is not None
            fields["router"] = self._address(mlp.gate.weight)
            fields["bias"] = None if bias_E is None else self._address(bias_E)
            fields["gate_up"], fields["down"] = (self._weight(packed) for packed in mlp.experts.packed)
        assert isinstance(dense, SwiGLU) and dense.packed is not None
        fields["shared_gate_up"], fields["shared_down"] = (self._weight(packed) for packed in dense.packed)
        return _Layer(**fields, shared_width=dense.packed[1].inputs)

    def _address(self, tensor: Tensor) -> int:
        plain = tensor.detach()
        assert plain.dtype == torch.float32 and plain.is_contiguous() and plain.device.type == "cpu"
        self._kept.append(plain)
        return plain.data_ptr()

    def _weight(self, packed: Packed | None) -> _Weight:
        assert packed is not None, "callers ask `suits` first"
        codes, scales = packed.codes.contiguous(), packed.scales.contiguous()
        self._kept += [codes, scales]
        return _Weight(codes.data_ptr(), scales.data_ptr(), packed.bits)


@reference("packed_decode")
def packed_decode_reference(
    decoder: PackedDecoder, tokens_S: Tensor, segments: Segments, cache: PagedView, routing: Routing | None
) -> Tensor:
    """Call the model itself: it defines the op."""
    return decoder.model(tokens_S, segments, cache, routing)


@native_implementation("packed_decode")
def _packed_decode(
    variant: str,
    decoder: PackedDecoder,
    tokens_S: Tensor,
    segments: Segments,
    cache: PagedView,
    routing: Routing | None,
) -> Tensor:
    return decoder.step(variant, tokens_S, segments, cache, routing)
