"""Merged: a model with packed weights and low-rank updates beside them, written as an ordinary folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from leanseek.checkpoint.directory import empty_model, write_tensors
from leanseek.checkpoint.names import entries
from leanseek.checkpoint.packed import parts_of
from leanseek.checkpoint.shards import Layout
from leanseek.kernels.packed import Packed, unpack
from leanseek.model.experts import Experts
from leanseek.model.layers import Linear, SwiGLU
from leanseek.model.transformer import Transformer
from leanseek.tokens.tokenizer import Tokenizer

Make = Callable[[], Tensor]


@torch.no_grad()
def write_merged(model: Transformer, folder: Path, tokenizer: Tokenizer | None) -> None:
    """Write the weights that packed ones stand for, each with its update, in bf16; what is plain stays as it is.

    One matrix at a time is in memory beside the model. The outcome is a model folder like any other.

    Args:
        model: with packed weights.
        folder: that nobody reads yet.
        tokenizer: written beside it, if given.
    """
    shapes = empty_model(model.config, device="meta")
    made = dict(_tensors(model, shapes))
    tensors = {}
    for entry in entries(shapes):
        name = entry.name
        if entry.copy:
            name = "model.embed_tokens.weight" if name.endswith("embed_tokens.weight") else "lm_head.weight"
        dtype, make = made[name]
        tensors[entry.name] = (Layout(entry.name, dtype, tuple(entry.target.shape)), make)
    write_tensors(folder, model.config, "bfloat16", tensors, tokenizer)


def _tensors(model: Transformer, shapes: Transformer) -> Iterator[tuple[str, tuple[str, Make]]]:
    """Yield each tensor's name, its type in the file, and what makes it."""
    modules, plain = dict(model.named_modules()), model.state_dict()
    bits = model.packed_bits
    assert bits is not None, "callers look"
    for part in parts_of(shapes, bits):
        owner, _, kind = part.name.rpartition(".")
        module = modules[part.name if part.packed is not None and part.name in modules else owner]
        if part.packed is None:
            dtype = "BF16" if part.dtype == "BF16" else "F32"
            yield part.name, (dtype, partial(_plain, plain[part.name], module))
        elif isinstance(module, Linear):
            yield f"{part.name}.weight", ("BF16", partial(_linear, module))
        else:
            assert isinstance(module, Experts | SwiGLU) and module.packed is not None
            stack = module.packed[0 if kind == "gate_up_proj" else 1]
            halves = 2 if kind == "gate_up_proj" else 1
            for number, name in enumerate(part.sources):
                yield name, ("BF16", partial(_expert, stack, number // halves, number % halves, halves))


def _plain(tensor: Tensor, module: torch.nn.Module) -> Tensor:
    if isinstance(module, Linear) and module.low_rank is not None:
        return tensor + module.low_rank.product()
    return tensor


def _linear(layer: Linear) -> Tensor:
    assert layer.packed is not None
    weight = unpack(layer.packed)
    return (weight if layer.low_rank is None else weight + layer.low_rank.product()).bfloat16()


def _expert(stack: Packed, expert: int, half: int, halves: int) -> Tensor:
    both = unpack(Packed(stack.codes[expert], stack.scales[expert], stack.outputs, stack.inputs))
    return both.chunk(halves, dim=0)[half].bfloat16().contiguous()
