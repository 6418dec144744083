"""Expert parallelism: each rank holds some experts of every layer, and tokens travel to where theirs are.

A token goes to a rank once, however many of its experts are there, and one sum comes back. The router chooses inside
`topk_group` groups; where a rank (or a node) holds whole groups, a token therefore travels to few of them.

Source: DeepSeek-V3 report section 2.1.2 (node-limited routing) and section 3.2.2 (dispatch and combine).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from leanseek.kernels.experts import routed_experts
from leanseek.model.experts import Experts


class Exchange(torch.autograd.Function):
    """Rows to other ranks and from them; the gradients go the same way back."""

    @staticmethod
    def forward(
        ctx: Any, group: dist.ProcessGroup, sent: list[int], received: list[int], *rows: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the rows that the others sent, of each tensor.

        Args:
            ctx: of autograd.
            group: the ranks.
            sent, received: how many rows to and from each rank.
            rows: sorted by rank.
        """
        ctx.group, ctx.sent, ctx.received = group, sent, received
        return tuple(_exchanged(one, sent, received, group) for one in rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """Return each row's gradient to the rank that it came from."""
        return (None, None, None, *(_exchanged(one, ctx.received, ctx.sent, ctx.group) for one in gradients))


def hold_experts(model: nn.Module, index: int, group: dist.ProcessGroup) -> None:
    """Keep this rank's experts of every layer, and send tokens to the others from now on.

    Args:
        model: whole; its experts are cut in place, and the model itself does not know.
        index: of this rank in the group.
        group: ranks that hold all experts together.
    """
    for module in model.modules():
        if isinstance(module, Experts):
            held = module.gate_up_proj.shape[0] // group.size()
            for name, whole in list(module.named_parameters()):
                part = whole.detach()[index * held : (index + 1) * held].clone()
                setattr(module, name, nn.Parameter(part))
            module.forward = partial(dispatch, module, group, held)  # type: ignore[method-assign]


def dispatch(
    module: Experts, group: dist.ProcessGroup, held: int, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor
) -> Tensor:
    """Return the weighted sum of each token's experts, wherever these are: [T, D].

    Args:
        module: with this rank's experts.
        group: ranks that hold all experts together, each `held` neighbours.
        held: experts of a rank.
        x_TD, weights_TK, experts_TK: as in `kernels.experts.experts_reference`.
    """
    with torch.no_grad():
        home_TK = experts_TK // held
        wanted = torch.zeros(x_TD.shape[0], group.size(), dtype=torch.bool, device=x_TD.device)
        wanted.scatter_(1, home_TK, True)
        ranks, travels_M = wanted.t().nonzero(as_tuple=True)
        going = wanted.sum(0)
        coming = torch.empty_like(going)
        dist.all_to_all_single(coming, going, group=group)
        sent, received = going.tolist(), coming.tolist()
        # Of each row that travels, the experts that it seeks there; -1: elsewhere.
        sought_MK = torch.where(home_TK[travels_M] == ranks[:, None], experts_TK[travels_M] % held, -1)
        sought_MK = _exchanged(sought_MK, sent, received, group)
        rows, choices = (sought_MK >= 0).nonzero(as_tuple=True)
    x_MD, weights_MK = Exchange.apply(group, sent, received, x_TD[travels_M], weights_TK[travels_M])
    if rows.numel():
        experts = sought_MK[rows, choices][:, None]
        weights = weights_MK[rows, choices][:, None]
        out = routed_experts(x_MD[rows], weights, experts, module.gate_up_proj, module.down_proj)
        out_MD = torch.zeros_like(x_MD).index_add(0, rows, out)
    else:
        # Nobody wants this rank: it stays in the gradient's graph all the same, for the others wait for it there.
        nothing = weights_MK.sum() + module.gate_up_proj.sum() + module.down_proj.sum()
        out_MD = x_MD * nothing.to(x_MD.dtype)
    (back_MD,) = Exchange.apply(group, received, sent, out_MD)
    return torch.zeros_like(x_TD).index_add(0, travels_M, back_MD)


def _exchanged(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    out = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), received, sent, group=group)
    return out
