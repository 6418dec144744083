"""Decoder: one decode step in few operations, for small models on a CPU; its readable twin is Transformer.forward.

A small model's step is mostly the price of calling operations, not of computing. So matrices that are applied
one after the other are multiplied into one beforehand, matrices with the same input stand side by side, the
scales of norms move into the matrices behind them, and results land in buffers whose views are made once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from leanseek.kernels.experts import routed_experts
from leanseek.kernels.linear import LEAST_ROWS, onednn_is_faster, product
from leanseek.model.cache import DecodeView
from leanseek.model.experts import DeepSeekMoE, Routing
from leanseek.model.layers import SwiGLU
from leanseek.model.transformer import Block, Transformer

# Largest merged query matrix (hidden_size x heads x cache width): merging multiplies its size by L / N,
# which only pays where calling an operation costs more than computing it.
MOST_MERGED = 1 << 19
# Columns beside the residual stream: the first holds what makes a vector's norm include RMSNorm's eps.
EXTRA = 16


@dataclass(frozen=True, eq=False)
class _Layer:
    """A block's merged weights, [in, out].

    Args:
        attend_in_DO: hidden state -> every head's query over the latents (L + R) and the new latent.
        attend_out_XD: every head's mixed latent -> residual stream.
        latent_scale_L, latent_eps: of the latent's norm.
        feed_in_DO: hidden state -> router scores, then gate and up of the dense or shared experts.
        feed_out_FD: their down projection; None without a dense part.
        moe: the mixture of experts, read as it is; None in a dense layer.
        moe_scale_D: of the norm before it; None in a dense layer, whose matrix has it.
    """

    attend_in_DO: Tensor
    attend_out_XD: Tensor
    latent_scale_L: Tensor
    latent_eps: Tensor
    feed_in_DO: Tensor
    feed_out_FD: Tensor | None
    moe: DeepSeekMoE | None
    moe_scale_D: Tensor | None


class _Frame:
    """The buffers of a step with S rows, and their views."""

    def __init__(self, decoder: Decoder, rows: int) -> None:
        config = decoder.model.config
        width = config.hidden_size
        self.rows = rows
        self.row_S = torch.arange(rows)
        self.stream_SX = torch.empty(rows, width + EXTRA)
        self.x_SD = self.stream_SX[:, :width]
        self.h_SD = torch.empty(rows, width)
        self.norm_S1 = torch.empty(rows, 1)
        self.attend_SO = torch.empty(rows, (config.num_attention_heads + 1) * config.cache_width)
        self.parts = decoder.parts(self.attend_SO)


class Decoder:
    """Runs decode steps of a model, one new token a row, from weights merged for that purpose.

    The weights are merged anew whenever torch's version counters say that the model's have changed; writes
    through `.data` escape these. Experts are read where they are, never copied.

    Args:
        model: for which `suits` holds.
    """

    def __init__(self, model: Transformer) -> None:
        config = model.config
        self.model = model
        self.blocks = [block for block in model.model.layers if isinstance(block, Block)][: config.num_hidden_layers]
        merged = [
            parameter
            for name, parameter in model.named_parameters()
            if not name.startswith(f"model.layers.{config.num_hidden_layers}.") and ".experts." not in name
        ]
        self._sources = merged
        self._versions = -1
        self._frame: _Frame | None = None
        self._layers: list[_Layer] = []
        self._embedding_WX = self._head_DW = torch.empty(0)

    @staticmethod
    def suits(model: Transformer) -> bool:
        """Whether a model is of the kind that this is for: fp32 on the CPU, small, plain queries."""
        config = model.config
        return (
            model.device.type == "cpu"
            and config.model_type == "deepseek_v3"
            and config.q_lora_rank is None
            and config.kv_lora_rank % 2 == 0  # rope's pairs are looked at as complex numbers where they lie
            and model.lm_head.packed is None
            and config.hidden_size * config.num_attention_heads * config.cache_width <= MOST_MERGED
            and all(p.dtype == torch.float32 and not p.is_inference() for p in model.parameters())
        )

    def __call__(
        self,
        tokens_S: Tensor,
        positions_S: Tensor,
        longest: int,
        level: bool,
        cache: DecodeView,
        routing: Routing | None = None,
    ) -> Tensor:
        """Read one token a row of the cache and return the next one's logits; call it in inference mode.

        Args:
            tokens_S: int64.
            positions_S: of each token, int64.
            longest: the largest position + 1.
            level: whether all positions are the same.
            cache: its first S rows hold what came before.
            routing: records the experts chosen.
        Returns:
            logits_SW.
        """
        self.refresh()
        rows = tokens_S.shape[0]
        frame = self._frame
        if frame is None or frame.rows != rows:
            frame = self._frame = _Frame(self, rows)
        x_SD, h_SD, norm_S1 = frame.x_SD, frame.h_SD, frame.norm_S1
        turns_S1R = self.model.turns(positions_S, longest).unsqueeze(1)
        hidden_S1K = None
        if not level:
            seen_S1K = torch.arange(longest) <= positions_S[:, None, None]
            hidden_S1K = torch.where(seen_S1K, 0.0, -math.inf)
        torch.index_select(self._embedding_WX, 0, tokens_S, out=frame.stream_SX)
        for index, layer in enumerate(self._layers):
            self._norm(frame)
            torch.div(x_SD, norm_S1, out=h_SD)
            out_SO = _product(h_SD, layer.attend_in_DO, frame.attend_SO)
            q_SHC, turned, latent_SL, entry_SC = frame.parts if out_SO is frame.attend_SO else self.parts(out_SO)
            turned.mul_(turns_S1R)
            torch.linalg.vector_norm(latent_SL, 2, -1, True, out=norm_S1)
            latent_SL.mul_(layer.latent_scale_L / norm_S1.hypot_(layer.latent_eps))
            keys_SKC = cache.append(index, entry_SC, frame.row_S, positions_S, longest, level)
            scores_SHK = (
                torch.bmm(q_SHC, keys_SKC.mT) if hidden_S1K is None else torch.baddbmm(hidden_S1K, q_SHC, keys_SKC.mT)
            )
            mixed_SHL = torch.bmm(torch.softmax(scores_SHK, -1), keys_SKC[:, :, : latent_SL.shape[1]])
            _add_product(x_SD, mixed_SHL.view(rows, -1), layer.attend_out_XD)
            self._norm(frame)
            if layer.moe is None:
                torch.div(x_SD, norm_S1, out=h_SD)
                self._feed(frame, layer, _product(h_SD, layer.feed_in_DO))
            else:
                torch.div(layer.moe_scale_D, norm_S1, out=h_SD)
                h_SD.mul_(x_SD)
                self._mixture(frame, layer, layer.moe, routing)
        self._norm(frame)
        torch.div(x_SD, norm_S1, out=h_SD)
        return _product(h_SD, self._head_DW)

    def refresh(self) -> None:
        """Merge the weights anew if the model's have changed since."""
        versions = sum([parameter._version for parameter in self._sources])
        if versions == self._versions:
            return
        with torch.no_grad():
            model = self.model
            eps = torch.zeros(model.config.vocab_size, EXTRA)
            eps[:, 0] = math.sqrt(model.config.hidden_size * model.config.rms_norm_eps)
            self._embedding_WX = torch.cat((model.model.embed_tokens.weight, eps), dim=1)
            self._head_DW = _merged(model.lm_head.weight, self._scale(model.model.norm.weight))
            self._layers = [self._layer(block) for block in self.blocks]
        self._versions = versions

    def parts(self, attend_SO: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return views of the attention's input product.

        Returns:
            The queries [S, H, C]; what rope turns, of all queries and the new entry, complex [S, H + 1, R / 2];
            the new entry's latent [S, L]; and the new entry [S, C].
        """
        config = self.model.config
        heads, latent = config.num_attention_heads, config.kv_lora_rank
        all_SXC = attend_SO.view(attend_SO.shape[0], heads + 1, config.cache_width)
        pairs = all_SXC[:, :, latent:].unflatten(-1, (-1, 2))
        entry_SC = all_SXC[:, heads]
        return all_SXC[:, :heads], torch.view_as_complex(pairs), entry_SC[:, :latent], entry_SC

    def _norm(self, frame: _Frame) -> None:
        torch.linalg.vector_norm(frame.stream_SX, 2, -1, True, out=frame.norm_S1)

    def _feed(self, frame: _Frame, layer: _Layer, gate_up_SF: Tensor) -> None:
        assert layer.feed_out_FD is not None, "callers look"
        width = layer.feed_out_FD.shape[0]
        hidden_SF = F.silu(gate_up_SF[:, :width]).mul_(gate_up_SF[:, width:])
        _add_product(frame.x_SD, hidden_SF, layer.feed_out_FD)

    def _mixture(self, frame: _Frame, layer: _Layer, moe: DeepSeekMoE, routing: Routing | None) -> None:
        out_SO = _product(frame.h_SD, layer.feed_in_DO)
        experts = moe.experts.gate_up_proj.shape[0]
        scores_SE = torch.sigmoid(out_SO[:, :experts])
        experts_SK = moe.gate.choose(scores_SE)
        if routing is not None:
            routing.experts.append(experts_SK)
        if layer.feed_out_FD is not None:
            self._feed(frame, layer, out_SO[:, experts:])
        weights_SK = moe.gate.weigh(scores_SE, experts_SK)
        frame.x_SD.add_(
            routed_experts(frame.h_SD, weights_SK, experts_SK, moe.experts.gate_up_proj, moe.experts.down_proj)
        )

    def _scale(self, weight_D: Tensor) -> Tensor:
        """Return a norm's scale for vectors of length 1."""
        return weight_D * math.sqrt(weight_D.shape[0])

    def _layer(self, block: Block) -> _Layer:
        config, attention = self.model.config, block.self_attn
        heads, latent = config.num_attention_heads, config.kv_lora_rank
        before_D, after_D = (
            self._scale(norm.weight) for norm in (block.input_layernorm, block.post_attention_layernorm)
        )
        up_HXL = attention.kv_b_proj.weight.view(heads, -1, latent)
        q_HXD = attention.q_proj.weight.view(heads, config.qk_head_dim, -1)
        key_HNL, value_HVL = up_HXL.split((config.qk_nope_head_dim, config.v_head_dim), dim=1)
        q_nope_HND, q_rope_HRD = q_HXD.split((config.qk_nope_head_dim, config.qk_rope_head_dim), dim=1)
        q_HCD = torch.cat((torch.bmm(key_HNL.mT, q_nope_HND), q_rope_HRD), dim=1) * attention.scale
        attend_in = torch.cat((q_HCD.flatten(0, 1), attention.kv_a_proj_with_mqa.weight))
        out_DHV = attention.o_proj.weight.view(config.hidden_size, heads, config.v_head_dim)
        attend_out_HLD = torch.bmm(value_HVL.mT, out_DHV.permute(1, 2, 0))
        mlp = block.mlp
        dense = mlp if isinstance(mlp, SwiGLU) else getattr(mlp, "shared_experts", None)
        feed_in = [] if dense is None else [dense.gate_proj.weight, dense.up_proj.weight]
        if isinstance(mlp, DeepSeekMoE):
            feed_in.insert(0, mlp.gate.weight)
        return _Layer(
            _merged(attend_in, before_D),
            attend_out_HLD.flatten(0, 1),
            self._scale(attention.kv_a_layernorm.weight),
            torch.tensor(math.sqrt(latent * config.rms_norm_eps)),
            _merged(torch.cat(feed_in), after_D if isinstance(mlp, SwiGLU) else None),
            None if dense is None else dense.down_proj.weight.t().contiguous(),
            mlp if isinstance(mlp, DeepSeekMoE) else None,
            after_D if isinstance(mlp, DeepSeekMoE) else None,
        )


def _merged(weight_OD: Tensor, scale_D: Tensor | None) -> Tensor:
    """Return a weight with the scale of the norm before it, as [in, out]."""
    return (weight_OD if scale_D is None else weight_OD * scale_D).t().contiguous()


def _product(a_SD: Tensor, weight_DO: Tensor, out_SO: Tensor | None = None) -> Tensor:
    """Multiply; `out_SO` is used where that saves time, and then returned."""
    if a_SD.shape[0] < LEAST_ROWS or not onednn_is_faster():
        return torch.mm(a_SD, weight_DO) if out_SO is None else torch.mm(a_SD, weight_DO, out=out_SO)
    return product(a_SD, weight_DO.t())


def _add_product(x_SD: Tensor, a_SO: Tensor, weight_OD: Tensor) -> None:
    """Add a product to the residual stream."""
    if a_SO.shape[0] < LEAST_ROWS or not onednn_is_faster():
        x_SD.addmm_(a_SO, weight_OD)
    else:
        x_SD.add_(product(a_SO, weight_OD.t()))
