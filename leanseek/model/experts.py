"""DeepSeekMoE: a router that a bias steers, routed experts, and shared ones that every token uses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanseek.kernels.experts import routed_experts
from leanseek.kernels.invariance import is_invariant, sigmoid
from leanseek.kernels.linear import linear
from leanseek.kernels.packed import Packed, packed_experts
from leanseek.kernels.stored import StoredExperts, stored_experts
from leanseek.model.config import ModelConfig
from leanseek.model.layers import SwiGLU


class Routing:
    """What the routers of one forward call chose, layer by layer; or what they must choose.

    No dataclass: torch's FSDP would take such an argument apart, and layers would write into copies of it.

    Args:
        replay_TNK: experts to use instead of choosing, [T, MoE layers, K] (keep-routing, V3.2 section 3.1);
            the mixing weights still come from the present scores.
        keep_scores: whether to keep the scores, for the balance loss.
        compare: whether to note, where a choice is dictated, if the router would have made the same.
        experts: per MoE layer, the experts used, [T, K]; layers add to it.
        scores: per MoE layer, the router's scores, [T, E]; likewise.
    Attributes:
        agreed: per MoE layer, whether a token's own choice is the dictated one, [T].
    """

    def __init__(
        self,
        replay_TNK: Tensor | None = None,
        keep_scores: bool = False,
        compare: bool = False,
        experts: list[Tensor] | None = None,
        scores: list[Tensor] | None = None,
    ) -> None:
        self.replay_TNK, self.keep_scores, self.compare = replay_TNK, keep_scores, compare
        self.experts, self.scores = experts or [], scores or []
        self.agreed: list[Tensor] = []

    def stacked(self) -> Tensor:
        """Return the experts used, [T, MoE layers, K]."""
        return torch.stack(self.experts, dim=1)


def choose_experts(
    scores_TE: Tensor,
    bias_E: Tensor | None,
    num_experts_per_tok: int,
    n_group: int,
    topk_group: int,
    group_best: int = 2,
) -> Tensor:
    """Choose each token's experts by biased score, inside its best groups.

    The bias decides only who is chosen; mixing weights come from the unbiased scores, so that balancing
    the load does not pull on the loss.

    Args:
        scores_TE: router scores after the sigmoid or the softmax; float32.
        bias_E: load-balancing bias; float32, changed by `train.balance`, never by autograd; None: V2 has none.
        num_experts_per_tok: K.
        n_group, topk_group: groups of experts, and how many a token may use.
        group_best: a group is as good as the sum of that many of its best scores: 2 in V3, 1 in V2.
    Returns:
        experts_TK, int64.
    Source: DeepSeek-V3 report (arXiv 2412.19437) section 2.1.2; groups left out are masked with -inf.
    """
    biased_TE = scores_TE.detach() if bias_E is None else scores_TE.detach() + bias_E
    if n_group > 1:
        grouped = biased_TE.view(-1, n_group, biased_TE.shape[1] // n_group)
        group_scores = grouped.topk(min(group_best, grouped.shape[2]), dim=-1).values.sum(-1)
        kept = torch.zeros_like(group_scores, dtype=torch.bool)
        kept.scatter_(1, group_scores.topk(topk_group, dim=-1).indices, True)
        biased_TE = grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(1)
    return biased_TE.topk(num_experts_per_tok, dim=-1, sorted=False).indices


class Router(nn.Module):
    """Scores experts in fp32 and chooses a token's K."""

    e_score_correction_bias: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        bias_E = torch.zeros(config.n_routed_experts, dtype=torch.float32) if config.topk_method == "noaux_tc" else None
        self.register_buffer("e_score_correction_bias", bias_E)

    def forward(self, x_TD: Tensor, routing: Routing | None) -> tuple[Tensor, Tensor]:
        """Return (weights_TK float32, experts_TK int64)."""
        x_TD, weight_ED = x_TD.float(), self.weight.float()
        logits_TE = linear(x_TD, weight_ED) if is_invariant() else F.linear(x_TD, weight_ED)
        softmax = self.config.scoring_func == "softmax"
        scores_TE = torch.softmax(logits_TE, dim=-1) if softmax else sigmoid(logits_TE)
        if routing is None or routing.replay_TNK is None:
            experts_TK = self.choose(scores_TE)
        else:
            experts_TK = routing.replay_TNK[:, len(routing.experts)]
            if routing.compare:
                own_TK = self.choose(scores_TE).sort(dim=-1).values
                routing.agreed.append((own_TK == experts_TK.sort(dim=-1).values).all(dim=-1))
        if routing is not None:
            routing.experts.append(experts_TK)
            if routing.keep_scores:
                routing.scores.append(scores_TE)
        return self.weigh(scores_TE, experts_TK), experts_TK

    def choose(self, scores_TE: Tensor) -> Tensor:
        """Return the experts that the scores and the bias choose, [T, K]."""
        config = self.config
        greedy = config.topk_method == "greedy"
        return choose_experts(
            scores_TE,
            self.e_score_correction_bias,
            config.num_experts_per_tok,
            1 if greedy else config.n_group,
            config.topk_group,
            2 if config.topk_method == "noaux_tc" else 1,
        )

    def weigh(self, scores_TE: Tensor, experts_TK: Tensor) -> Tensor:
        """Return the mixing weights of chosen experts, [T, K]."""
        config = self.config
        weights_TK = scores_TE.gather(1, experts_TK)
        if config.norm_topk_prob:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
            if config.scoring_func == "softmax":  # V2 normalises or scales, never both
                return weights_TK
        return weights_TK if config.routed_scaling_factor == 1.0 else weights_TK * config.routed_scaling_factor


class Experts(nn.Module):
    """All routed experts of a layer, stacked: gate and up [E, 2F, D], down [E, D, F]; or packed, or as files have."""

    packed: tuple[Packed, Packed] | None = None
    stored: StoredExperts | None = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, width, dim = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, dim))
        self.down_proj = nn.Parameter(torch.empty(experts, dim, width))

    def forward(self, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        """Return the weighted sum of each token's experts."""
        if self.packed is not None:
            return packed_experts(x_TD, weights_TK, experts_TK, *self.packed)
        if self.stored is not None:
            return stored_experts(x_TD, weights_TK, experts_TK, self.stored)
        return routed_experts(x_TD, weights_TK, experts_TK, self.gate_up_proj, self.down_proj)

    def hold(self, gate_up: Packed, down: Packed) -> None:
        """Have packed stacks in place of the plain ones."""
        del self.gate_up_proj, self.down_proj
        self.packed = (gate_up, down)

    def keep(self, stored: StoredExperts) -> None:
        """Have experts as their files have them in place of the stacks."""
        del self.gate_up_proj, self.down_proj
        self.stored = stored


class DeepSeekMoE(nn.Module):
    """Routed experts plus shared ones. Source: DeepSeek-V3 report section 2.1.2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        if config.n_shared_experts:
            self.shared_experts = SwiGLU(config.hidden_size, config.n_shared_experts * config.moe_intermediate_size)

    def forward(self, x_TD: Tensor, routing: Routing | None = None) -> Tensor:
        """Apply the experts that the router chooses, and the shared ones."""
        weights_TK, experts_TK = self.gate(x_TD, routing)
        out_TD = self.experts(x_TD, weights_TK, experts_TK)
        return out_TD + self.shared_experts(x_TD) if hasattr(self, "shared_experts") else out_TD
