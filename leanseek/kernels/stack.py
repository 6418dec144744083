"""Stack: decoder layers whose fp32 weights stand in panels, and one call of the compiled library through all of them.

A panel holds 16 outputs of a weight side by side, so that a lane of a wide register is an output: [panels, inputs, 16],
the last panel filled up with zeros. Gate and up take panels in turn. Norms, biases and the embedding are read where
they are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from leanseek.kernels import native
from leanseek.kernels.registry import chosen, native_implementation, reference

PANEL = 16
# What the library's router has room for.
MOST_EXPERTS, MOST_GROUPS = 512, 64


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
    def in_turn(cls, gate_FD: Tensor, up_FD: Tensor) -> Panels:
        """Put gate and up [..., F, D] into panels, one of each in turn."""
        both = torch.stack((cls.of(gate_FD).numbers, cls.of(up_FD).numbers), dim=-3)
        return cls(both.flatten(-4, -3), 2 * (gate_FD.shape[-2] + -gate_FD.shape[-2] % PANEL))


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


class _Layer(ctypes.Structure):
    """Twin of csrc/stack.h's `leanseek_layer`."""

    _fields_ = [
        *((name, _POINTER) for name in ("norm", "query_down", "query_norm", "query", "latent", "latent_norm")),
        *((name, _POINTER) for name in ("key_up", "value_up", "out", "mlp_norm", "gate_up", "down", "router", "bias")),
        *((name, _POINTER) for name in ("experts_gate_up", "experts_down")),
        ("width", _I64),
    ]


class _Stack(ctypes.Structure):
    """Twin of `leanseek_stack`."""

    _fields_ = [
        ("layers", ctypes.POINTER(_Layer)),
        *((name, _I64) for name in ("count", "first", "dim", "heads", "query_rank", "nope", "rope", "value", "latent")),
        *((name, _I64) for name in ("experts", "per_token", "groups", "best_groups", "group_best", "expert_width")),
        ("vocabulary", _I64),
        *((name, _I32) for name in ("softmax", "normalised")),
        *((name, _F32) for name in ("eps", "scale", "routed_scale", "unused")),
        *(
            (name, _POINTER)
            for name in ("embedding", "join", "join_embedding_norm", "join_hidden_norm", "norm", "head")
        ),
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
        layers: per layer, its weights by the names of csrc/stack.h (tensors and panels) and `width`.
        shape: the other fields of csrc/stack.h's `leanseek_stack`: numbers, tensors and panels.
    """

    def __init__(self, layers: Sequence[Mapping[str, object]], shape: Mapping[str, object]) -> None:
        self._kept = [*layers, shape]  # what the library points at
        self._layers = (_Layer * len(layers))(*[_Layer(**_plain(layer)) for layer in layers])
        self._stack = _Stack(layers=self._layers, count=len(layers), **_plain(shape))
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
        store: the cache, float32 [layers, pages, tokens of a page, L + R].
        turns: rope's factors, complex64 [positions, R / 2]; enough for all.
        hidden_TD: what an MTP layer joins with the tokens.
        logits, routing: what is wanted besides.
    Returns:
        Hidden states after the last norm [T, D], logits [T, W], and the experts chosen [T, mixtures, K], int64.
    """
    assert store.dtype == torch.float32 and store.is_contiguous() and turns.is_contiguous()
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
            value = value.numbers
        if isinstance(value, Tensor):
            assert value.dtype == torch.float32 and value.is_contiguous()
            value = value.data_ptr()
        plain[name] = value
    return plain
