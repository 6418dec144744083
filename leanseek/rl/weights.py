"""Weights on the way: of a model that learns, only the values that changed travel to those who sample from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from leanseek.errors import RunError

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Sparse:
    """A tensor's changed elements.

    Args:
        places_X: where they are in the flattened tensor, int32 (int64 beyond 2^31 elements).
        values_X: what stands there now.
    """

    places_X: Tensor
    values_X: Tensor

    @property
    def bytes(self) -> int:
        """What travels."""
        return self.places_X.nbytes + self.values_X.nbytes


@dataclass(frozen=True, eq=False)
class Update:
    """What makes known weights the present ones, to the bit.

    Args:
        sparse: by name, tensors of which little changed.
        dense: by name, tensors of which so much did that the whole is shorter.
        elements, changed: of all tensors, in all and changed.
    """

    sparse: Mapping[str, Sparse]
    dense: Mapping[str, Tensor]
    elements: int
    changed: int

    @property
    def bytes(self) -> int:
        """What travels."""
        return sum(one.bytes for one in self.sparse.values()) + sum(one.nbytes for one in self.dense.values())

    def apply(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the changes into the known weights, in place.

        Raises:
            RunError: the weights are of another model.
        """
        if missing := {*self.sparse, *self.dense} - tensors.keys():
            raise RunError(f"an update is of another model: this one has no tensor {min(missing)}")
        with torch.no_grad():
            for name, one in self.sparse.items():
                target = tensors[name]
                places_X, values_X = one.places_X.to(target.device).long(), one.values_X.to(target.device)
                if target.is_contiguous():
                    target.view(-1)[places_X] = values_X
                else:
                    target.copy_(target.flatten().index_copy(0, places_X, values_X).view(target.shape))
            for name, whole in self.dense.items():
                tensors[name].copy_(whole)


def update_of(known: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> Update:
    """Return what changed, bit by bit: 0 that became -0 is a change, NaN that stayed is none.

    An element costs its place and its value: a tensor is sent whole where that is shorter, from half of the elements
    on in fp32, a third in bf16.

    Args:
        known: what the receiver has, by name.
        now: the same tensors as they are now; the update shares no memory with them.
    Raises:
        RunError: other names, shapes or dtypes.
    """
    if known.keys() != now.keys():
        raise RunError("weights of two different models cannot be compared")
    sparse: dict[str, Sparse] = {}
    dense: dict[str, Tensor] = {}
    elements = changed = 0
    for name, before in known.items():
        after = now[name].detach()
        if before.shape != after.shape or before.dtype != after.dtype:
            now_is, was = (f"{one.dtype} of shape {tuple(one.shape)}" for one in (after, before))
            raise RunError(f"{name} is {now_is}, and was {was}")
        bits = _BITS[after.element_size()]
        flat = after.reshape(-1)
        differs = before.detach().reshape(-1).view(bits) != flat.view(bits)
        count = int(differs.sum())
        elements, changed = elements + flat.numel(), changed + count
        if not count:
            continue
        place = torch.int32 if flat.numel() < 1 << 31 else torch.int64
        if count * (place.itemsize + after.element_size()) >= after.nbytes:
            dense[name] = after.cpu().clone()
        else:
            places_X = differs.nonzero().squeeze(1)
            sparse[name] = Sparse(places_X.to(place).cpu(), flat[places_X].cpu())
    return Update(sparse, dense, elements, changed)
