"""Muon for matrices and stacked experts, AdamW for the rest; state is kept by parameter name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from leanseek.sections.training import OptimiserSettings

# Quintic Newton-Schulz coefficients of Jordan et al. 2024 (Muon), as V4's report lists them too.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
# An orthogonal update of an n x m matrix has RMS 1 / sqrt(max(n, m)); this brings it to AdamW's usual RMS
# (Moonlight, arXiv 2502.16982 section 2.2), so that one learning rate serves all shapes.
UPDATE_RMS = 0.2
# What `state_dict` holds beside the number of steps, each by parameter name.
STATE = ("master", "momentum", "first", "second")


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return the nearest semi-orthogonal matrices, roughly, by Newton-Schulz iteration.

    Args:
        matrices: [..., n, m]; a stack is done in one batch.
    Returns:
        Same shape and dtype; singular values between about 0.7 and 1.2.
    Source: Jordan et al. 2024, "Muon"; the coefficients favour speed over exactness, and so does bf16.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    shape = x.shape
    x = x.reshape(-1, *shape[-2:])
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(_iteration_dtype(x.device))
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    x = x.view(shape).to(matrices.dtype)
    return x.mT if tall else x


def _iteration_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the processor multiplies it natively (4 times as fast on Zen 5), else fp32."""
    native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


class Optimiser:
    """Muon on hidden matrices, AdamW on embeddings, head, norms and router.

    Args:
        model: whose parameters are stepped; their gradients are read from `.grad`.
        settings: learning rates and decay. `name = "adamw"` uses AdamW at `lr` for everything.
    """

    def __init__(self, model: nn.Module, settings: OptimiserSettings) -> None:
        self.settings = settings
        named = self.named(model)
        self.matrices = {n: p for n, p in named.items() if settings.name == "muon" and _is_hidden_matrix(n, p)}
        self.others = {n: p for n, p in named.items() if n not in self.matrices}
        self.steps = 0
        # Steps are smaller than what bf16 can add: such parameters are stepped as fp32 and rounded afterwards.
        self.master = {n: p.detach().float() for n, p in named.items() if p.dtype != torch.float32}
        self.weights = {n: self.master.get(n, p) for n, p in named.items()}
        self.momentum = {n: torch.zeros_like(self.weights[n]) for n in self.matrices}
        self.first = {n: torch.zeros_like(self.weights[n]) for n in self.others}
        self.second = {n: torch.zeros_like(self.weights[n]) for n in self.others}

    def named(self, model: nn.Module) -> dict[str, Any]:
        """Return what is stepped, by name; gradients are read from its `.grad`."""
        return dict(model.named_parameters())

    @torch.no_grad()
    def clip(self) -> float:
        """Scale gradients to the settings' largest norm; return the norm before."""
        gradients = [p.grad for p in (*self.matrices.values(), *self.others.values()) if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if float(norm) > self.settings.clip:
            torch._foreach_mul_(gradients, self.settings.clip / float(norm))
        return float(norm)

    @torch.no_grad()
    def step(self, lr_factor: float) -> None:
        """Apply one update at `lr_factor` times the peak learning rates."""
        self.steps += 1
        self._muon(self.settings.lr * lr_factor)
        adamw_lr = self.settings.lr if self.settings.name == "adamw" else self.settings.adamw_lr
        self._adamw(adamw_lr * lr_factor)
        for name, master in self.master.items():
            (self.matrices if name in self.matrices else self.others)[name].copy_(master)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in (*self.matrices.values(), *self.others.values()):
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""
        return {"steps": self.steps} | {group: getattr(self, group) for group in STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        self.steps = int(state["steps"])
        for group in STATE:
            for name, tensor in getattr(self, group).items():
                tensor.copy_(state[group][name])

    def _muon(self, lr: float) -> None:
        by_kind: dict[tuple[int, int, bool], list[tuple[Tensor, Tensor]]] = {}
        for name, parameter in self.matrices.items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad.to(self.momentum[name].dtype)
            momentum = self.momentum[name].lerp_(gradient, 1 - self.settings.momentum)
            update = gradient.lerp(momentum, self.settings.momentum)  # Nesterov
            for piece, target in zip(_pieces(name, update), _pieces(name, self.weights[name]), strict=True):
                by_kind.setdefault(self._kind(name, piece), []).append((piece, target))
        for kind, pairs in by_kind.items():
            updates = self._updates(kind, [piece for piece, _ in pairs])
            scale = lr * UPDATE_RMS * max(kind[:2]) ** 0.5
            at = 0
            for piece, target in pairs:
                count = piece.shape[0] if piece.ndim > 2 else 1
                target.mul_(1 - lr * self.settings.weight_decay)
                target.sub_(updates[at : at + count].view(target.shape), alpha=scale)
                at += count

    def _kind(self, name: str, piece: Tensor) -> tuple[int, int, bool]:
        """Return the shape of the matrices that a piece is made of, and whether it is but some rows of one."""
        return piece.shape[-2], piece.shape[-1], False

    def _updates(self, kind: tuple[int, int, bool], pieces: list[Tensor]) -> Tensor:
        """Orthogonalise pieces of a kind in one batch; [matrices, rows, columns]."""
        return orthogonalise(torch.cat([piece.reshape(-1, *piece.shape[-2:]) for piece in pieces]))

    def _adamw(self, lr: float) -> None:
        names = [name for name, p in self.others.items() if p.grad is not None]
        if not names:
            return
        parameters: list[Tensor] = [self.weights[n] for n in names]
        gradients = [self.others[n].grad.to(self.first[n].dtype) for n in names]
        first, second = [self.first[n] for n in names], [self.second[n] for n in names]
        beta1, beta2 = 0.9, self.settings.beta2
        torch._foreach_mul_(parameters, 1 - lr * self.settings.weight_decay)
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        denominators = torch._foreach_sqrt(second)
        torch._foreach_div_(denominators, (1 - beta2**self.steps) ** 0.5)
        torch._foreach_add_(denominators, 1e-8)
        torch._foreach_addcdiv_(parameters, first, denominators, -lr / (1 - beta1**self.steps))


def _is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter maps hidden states to hidden states; embedding, head and router do not."""
    return parameter.ndim >= 2 and not name.endswith(("embed_tokens.weight", "lm_head.weight", "gate.weight"))


def _pieces(name: str, tensor: Tensor) -> list[Tensor]:
    """Split stacked gate and up projections, which are two matrices each."""
    if name.endswith("gate_up_proj"):
        return list(tensor.chunk(2, dim=-2))
    return [tensor]
