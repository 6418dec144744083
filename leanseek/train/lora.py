"""Lora: low-rank updates of chosen layers in place of full training.

Plain weights in memory are always the merged ones: W0 + alpha / rank B A is written into the model after every
step, so that engine, objective and checkpoint see an ordinary model. The gradients of A and B follow from that of W,
which the trainer computes anyhow: what is saved is the optimiser's state, and the gradients of all layers that are not
adapted. Packed weights (int8, int4) cannot be written: there A and B stand beside them, and only they have gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from leanseek.errors import ConfigError, nearest
from leanseek.model.layers import Linear, LowRank
from leanseek.model.transformer import Transformer
from leanseek.sections.training import LoraSettings, OptimiserSettings
from leanseek.train.optimisers import Optimiser


class _Updates:
    """A and B of the adapted layers and their optimiser; to the trainer, an optimiser.

    Args:
        model: its own parameters are frozen.
        settings: of the optimiser of A and B.
        rank: of the updates.
        alpha: they are multiplied by alpha / rank.
        targets: last parts of names of Linear layers, such as "q_proj"; none: all of the main layers but the head.
        seed: of A; B begins at zero, so that the model begins as it is.
    Raises:
        ConfigError: a target that the model does not have.
    Source: Hu et al. 2021 (arXiv 2106.09685) section 4.1.
    """

    def __init__(
        self,
        model: Transformer,
        settings: OptimiserSettings,
        *,
        rank: int,
        alpha: float,
        targets: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.scale = alpha / rank
        layers = _chosen(model, targets)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.factors = _factors(layers, rank, seed, model.device)
        self.inner = _optimiser(self.factors, settings)
        self._adapt(layers)

    def _adapt(self, layers: Mapping[str, Linear]) -> None:
        """Let the layers feel the updates."""
        raise NotImplementedError

    @property
    def settings(self) -> OptimiserSettings:
        """Of the optimiser of A and B."""
        return self.inner.settings

    def clip(self) -> float:
        """Scale the gradients of A and B; return their norm before."""
        return self.inner.clip()

    def step(self, lr_factor: float) -> None:
        """Apply one update to A and B."""
        self.inner.step(lr_factor)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.inner.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs beside the weights that the updates stand on."""
        a = {name: pair[0].detach() for name, pair in self.factors.items()}
        b = {name: pair[1].detach() for name, pair in self.factors.items()}
        return {"inner": self.inner.state_dict(), "a": a, "b": b}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        self.inner.load_state_dict(state["inner"])
        for name, (a, b) in self.factors.items():
            a.copy_(state["a"][name])
            b.copy_(state["b"][name])


class Lora(_Updates):
    """Updates merged into plain weights after every step; arguments as of `_Updates`."""

    def _adapt(self, layers: Mapping[str, Linear]) -> None:
        self.weights = {name: layer.weight.requires_grad_(True) for name, layer in layers.items()}
        self.base = {name: weight.detach().float().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def clip(self) -> float:
        """Turn the gradients of the weights into those of A and B, and scale these; return their norm before."""
        for name, weight in self.weights.items():
            a, b = self.factors[name]
            if weight.grad is None:
                a.grad = b.grad = None
                continue
            gradient = weight.grad.float()
            a.grad = self.scale * (b.t() @ gradient)
            b.grad = self.scale * (gradient @ a.t())
        return super().clip()

    @torch.no_grad()
    def step(self, lr_factor: float) -> None:
        """Apply one update to A and B, and write the merged weights."""
        super().step(lr_factor)
        for name, weight in self.weights.items():
            a, b = self.factors[name]
            weight.copy_(torch.addmm(self.base[name], b, a, alpha=self.scale))

    def zero_grad(self) -> None:
        """Forget the gradients, the weights' too."""
        super().zero_grad()
        for weight in self.weights.values():
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs: the weights without the updates among it."""
        return {**super().state_dict(), "base": self.base}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `state_dict` gave; the model's weights are the merged ones already."""
        super().load_state_dict(state)
        for name, base in self.base.items():
            base.copy_(state["base"][name])


class PackedLora(_Updates):
    """Updates beside the packed weights of a model, which cannot be written; arguments as of `_Updates`.

    What can be adapted are attention's layers: MLPs and experts are packed as one.
    """

    def _adapt(self, layers: Mapping[str, Linear]) -> None:
        for name, layer in layers.items():
            layer.low_rank = LowRank(*self.factors[name], self.scale)


def optimiser_of(settings: LoraSettings, seed: int) -> Callable[[Transformer, OptimiserSettings], Any]:
    """Return what makes a stage's optimiser: a Lora where it has a rank, else an ordinary one.

    Args:
        settings: of the stage.
        seed: of the updates.
    """
    if not settings.lora_rank:
        return Optimiser
    rank, alpha, targets = settings.lora_rank, settings.lora_alpha, settings.lora_targets

    def make(model: Transformer, own: OptimiserSettings) -> Any:
        kind = Lora if model.packed_bits is None else PackedLora
        return kind(model, own, rank=rank, alpha=alpha, targets=targets, seed=seed)

    return make


Factors = dict[str, tuple[nn.Parameter, nn.Parameter]]


def _factors(layers: Mapping[str, Linear], rank: int, seed: int, device: torch.device) -> Factors:
    """Return each layer's A [rank, in] and B [out, rank], the latter noughts, by the names of the weights."""
    generator = torch.Generator().manual_seed(seed)
    found: Factors = {}
    for name, layer in layers.items():
        outputs, inputs = layer.shape
        a = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        found[name] = nn.Parameter(a.to(device)), nn.Parameter(torch.zeros(outputs, rank, device=device))
    return found


def _optimiser(factors: Factors, settings: OptimiserSettings) -> Optimiser:
    module = nn.Module()
    for name, pair in factors.items():
        for side, parameter in zip("AB", pair, strict=True):
            module.register_parameter(f"{name.replace('.', '/')}/{side}", parameter)
    return Optimiser(module, settings)


def _chosen(model: Transformer, targets: Sequence[str]) -> dict[str, Linear]:
    """Return the layers to adapt by the names of their weights."""
    mtp = f"model.layers.{model.config.num_hidden_layers}."
    # The MTP layer and V3.2's indexer get no gradient from this objective.
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Linear) and not name.startswith(mtp) and ".indexer." not in name
    }
    kinds = {name.rpartition(".")[2] for name in layers}
    for target in targets:
        if target not in kinds:
            raise ConfigError(
                f"lora_targets has {target!r}, which is not a layer of this model{nearest(target, kinds)}; "
                f"it has {', '.join(sorted(kinds))}"
            )
        if target == "lm_head" and model.config.tie_word_embeddings:
            raise ConfigError("lora_targets has 'lm_head', but this model's head is its embedding: leave it out")
    wanted = set(targets) or kinds - {"lm_head"}
    return {f"{name}.weight": layer for name, layer in layers.items() if name.rpartition(".")[2] in wanted}
