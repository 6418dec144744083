"""Stack: decoder layers as the compiled library takes them, and one call of it through all of them.

A weight is packed (`kernels.packed`), or fp32 in panels: a panel holds 16 outputs side by side, so that a lane of a
wide register is an output: [panels, inputs, 16], the last panel filled up with zeros. Norms, biases and the embedding
are read where they are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from leanseek.kernels import native
from leanseek.kernels.packed import GROUP, PANEL, Packed
from leanseek.kernels.registry import chosen, native_implementation, reference

# What the library's router and its attention have room for.
MOST_EXPERTS, MOST_GROUPS, MOST_CHANNELS = 512, 64, 1024
# Bytes of a layer's weights that a core's own cache holds, or nearly: threads then split tokens, and not weights.
NEAR_BYTES = 4 << 20


@dataclass(frozen=True, eq=False)
class Panels:
    """A weight, or a stack of them, in panels.

    Args:
        numbers: float32, [..., panels, inputs, 16].
        outputs: rows that are there.
    """

    numbers: Tensor
    outputs: int

    @classmethod
    def of(cls, weight_OD: Tensor) -> Panels:
        """Put a weight [..., O, D] into panels."""
        outputs = weight_OD.shape[-2]
        padded = F.pad(weight_OD.detach().float(), (0, 0, 0, -outputs % PANEL))
        return cls(padded.unflatten(-2, (-1, PANEL)).transpose(-1, -2).contiguous(), outputs)

    @classmethod
    def halves(cls, gate_FD: Tensor, up_FD: Tensor) -> Panels:
        """Put gate and up [..., F, D] into panels one after the other, each filled up to whole groups of outputs."""
        missing = -gate_FD.shape[-2] % GROUP
        both = torch.cat([F.pad(half.detach(), (0, 0, 0, missing)) for half in (gate_FD, up_FD)], dim=-2)
        return cls.of(both)


def panels_linear(x_TD: Tensor, weight: Panels) -> Tensor:
    """Multiply by a weight in panels, transposed; every row is the same whatever the other rows are.

    Args:
        x_TD: float32, [T, D], on the CPU.
        weight: not a stack.
    Returns:
        [T, O].
    """
    function = chosen("panels_linear") or panels_linear_reference
    out: Tensor = function(x_TD, weight)
    return out


@reference("panels_linear")
def panels_linear_reference(x_TD: Tensor, weight: Panels) -> Tensor:
    """Compute `panels_linear` in plain torch; its definition."""
    return F.linear(x_TD.float(), weight.numbers.transpose(1, 2).flatten(0, 1)[: weight.outputs])


@native_implementation("panels_linear")
def _panels_linear(variant: str, x_TD: Tensor, weight: Panels) -> Tensor:
    x_TD = x_TD.float().contiguous()
    out_TO = x_TD.new_empty(x_TD.shape[0], weight.outputs)
    native.call("panels_product", variant, weight.numbers, weight.outputs, x_TD.shape[1], x_TD, x_TD.shape[0], out_TO)
    return out_TO


_POINTER, _I64, _I32, _F32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class _Weight(ctypes.Structure):
    """Twin of csrc/stack.h's `leanseek_weight`."""

    _fields_ = [("numbers", _POINTER), ("scales", _POINTER), ("kind", _I64), ("apart", _I64)]


class _Layer(ctypes.Structure):
    """Twin of `leanseek_layer`."""

    _fields_ = [
        ("norm", _POINTER),
        ("query_down", _Weight),
        ("query_norm", _POINTER),
        *((name, _Weight) for name in ("query", "latent")),
        *((name, _POINTER) for name in ("latent_norm", "query_bias", "latent_bias")),
        ("key_up", _Weight),
        ("key_scales", _POINTER),
        *((name, _Weight) for name in ("value_up", "out")),
        ("mlp_norm", _POINTER),
        *((name, _Weight) for name in ("gate_up", "down", "router")),
        ("bias", _POINTER),
        *((name, _Weight) for name in ("experts_gate_up", "experts_down")),
        ("width", _I64),
    ]


class _Stack(ctypes.Structure):
    """Twin of `leanseek_stack`."""

    _fields_ = [
        ("layers", ctypes.POINTER(_Layer)),
        *((name, _I64) for name in ("count", "first", "dim", "heads", "query_rank", "nope", "rope", "value", "latent")),
        ("shared", _I64),
        *((name, _I64) for name in ("experts", "per_token", "groups", "best_groups", "group_best", "expert_width")),
        ("vocabulary", _I64),
        *((name, _I32) for name in ("softmax", "normalised", "by_tokens", "short_embedding", "short_store")),
        *((name, _F32) for name in ("eps", "scale", "routed_scale")),
        ("embedding", _POINTER),
        ("join", _Weight),
        *((name, _POINTER) for name in ("join_embedding_norm", "join_hidden_norm", "norm")),
        ("head", _Weight),
    ]


class _Batch(ctypes.Structure):
    """Twin of `leanseek_batch`."""

    _fields_ = [
        *((name, _I64) for name in ("tokens", "texts")),
        *((name, _POINTER) for name in ("ids", "starts", "positions", "tables")),
        *((name, _I64) for name in ("pages", "page")),
        ("store", _POINTER),
        ("layer_numbers", _I64),
        *((name, _POINTER) for name in ("turns", "hidden", "out", "logits", "chosen")),
    ]


class Stack:
    """Layers' weights as the library reads them.

    Args:
        layers: per layer, its weights by the names of csrc/stack.h (tensors, panels and packed weights) and `width`.
        shape: the other fields of csrc/stack.h's `leanseek_stack` (but for those that the tensors tell).
        store_dtype: of the cache: float32 or bfloat16.
    """

    def __init__(
        self, layers: Sequence[Mapping[str, object]], shape: Mapping[str, object], store_dtype: torch.dtype
    ) -> None:
        self._kept = [*layers, shape]  # what the library points at
        self._layers = (_Layer * len(layers))(*[_Layer(**_plain(layer)) for layer in layers])
        embedding = shape["embedding"]
        assert isinstance(embedding, Tensor)
        self.store_dtype = store_dtype
        self._stack = _Stack(
            layers=self._layers,
            count=len(layers),
            by_tokens=max(sum(map(_bytes, layer.values())) for layer in layers) <= NEAR_BYTES,
            short_embedding=embedding.dtype == torch.bfloat16,
            short_store=store_dtype == torch.bfloat16,
            **_plain(shape),
        )
        self.address = ctypes.addressof(self._stack)
        self.mixtures = sum("router" in layer for layer in layers)
        self.dim, self.per_token, self.vocabulary = self._stack.dim, self._stack.per_token, self._stack.vocabulary


def run_stack(
    variant: str,
    stack: Stack,
    ids_T: Tensor,
    starts_S: Tensor | None,
    positions_S: Tensor,
    tables_SB: Tensor,
    store: Tensor,
    turns: Tensor,
    *,
    hidden_TD: Tensor | None = None,
    logits: bool = False,
    routing: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Take tokens through a stack; their latents go into the cache.

    Args:
        variant: of the library.
        stack: the weights.
        ids_T: the texts' new tokens, one text after the other; int64.
        starts_S: where each text's begin, and T at the end, int64 [S + 1]; None: one token a text.
        positions_S: of each text's first new token, int64.
        tables_SB: each text's pages, int64; they have room for all its tokens.
        store: the cache, [layers, pages, tokens of a page, L + R], in the stack's `store_dtype`.
        turns: rope's factors, complex64 [positions, R / 2]; enough for all.
        hidden_TD: what an MTP layer joins with the tokens.
        logits, routing: what is wanted besides.
    Returns:
        Hidden states after the last norm [T, D], logits [T, W], and the experts chosen [T, mixtures, K], int64.
    """
    assert store.dtype == stack.store_dtype and store.is_contiguous() and turns.is_contiguous()
    tokens = ids_T.shape[0]
    out_TD = torch.empty(tokens, stack.dim)
    logits_TW = torch.empty(tokens, stack.vocabulary) if logits else None
    chosen_TNK = torch.empty(tokens, stack.mixtures, stack.per_token, dtype=torch.int64) if routing else None
    given = [t if t is None else t.contiguous() for t in (ids_T, starts_S, positions_S, tables_SB, hidden_TD)]
    ids, starts, positions, tables, hidden = [None if t is None else t.data_ptr() for t in given]
    batch = _Batch(
        tokens,
        positions_S.shape[0],
        ids,
        starts,
        positions,
        tables,
        tables_SB.shape[1],
        store.shape[2],
        store.data_ptr(),
        store.stride(0),
        turns.data_ptr(),
        hidden,
        out_TD.data_ptr(),
        None if logits_TW is None else logits_TW.data_ptr(),
        None if chosen_TNK is None else chosen_TNK.data_ptr(),
    )
    native.call("decode", variant, stack.address, ctypes.addressof(batch))
    return out_TD, logits_TW, chosen_TNK


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    plain: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Panels):
            assert value.numbers.is_contiguous()
            value = _Weight(value.numbers.data_ptr(), None, 0, value.numbers.shape[-3])
        elif isinstance(value, Packed):
            # Parts of a stack's weights lie as far apart as the whole ones.
            panel, apart = value.codes.shape[-2] * value.codes.shape[-1], value.codes.stride(0)
            assert value.codes.stride()[-3:] == (panel, value.codes.shape[-1], 1)
            value = _Weight(value.codes.data_ptr(), value.scales.data_ptr(), value.bits, apart // panel)
        elif isinstance(value, Tensor):
            assert value.is_contiguous()
            assert value.dtype == torch.float32 or name == "embedding"
            value = value.data_ptr()
        plain[name] = value
    return plain


def _bytes(value: object) -> int:
    return value.numbers.nbytes if isinstance(value, Panels) else value.nbytes if isinstance(value, Packed) else 0
