"""Exchange: what experts on other devices cost: the bytes of dispatch and combine, and their seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from leanseek.cost.roofline import BYTES, Roofline
from leanseek.model.config import ModelConfig

# Combined outputs, and dispatched inputs where products are not in FP8, travel in bf16 (V3 report, section 3.2.2).
COMBINED_BYTES = 2.0


@dataclass(frozen=True)
class Reach:
    """Where one token's experts are, on the average.

    Args:
        devices: other devices of its own node that it is sent to, and of the nodes that it has come to.
        nodes: other nodes that it is sent to.
    """

    devices: float
    nodes: float


def reach(config: ModelConfig, ep: int, per_node: int) -> Reach:
    """Return how far a token travels when experts are spread evenly over `ep` devices.

    A token goes once to each node that has experts of its, and from there on over the fast link to their devices
    (V3 report, section 3.2.2). Groups bound how many nodes or devices that can be: with `n_group` groups, of which a
    token uses `topk_group`, groups that stay together on a node.

    Args:
        config: the model's.
        ep: devices that share the experts.
        per_node: devices of a node.
    """
    if ep <= 1 or not config.n_routed_experts:
        return Reach(0.0, 0.0)
    nodes = max(math.ceil(ep / per_node), 1)
    visited = _places(config, nodes)
    touched = max(_places(config, ep), visited)
    # Its own node, and its own device, are among the places as often as any other.
    return Reach(touched * (1 - 1 / min(ep, per_node)), visited * (1 - 1 / nodes))


def _places(config: ModelConfig, places: int) -> float:
    """Return how many of so many equal places a token's experts are in, on the average."""
    chosen, groups, kept = config.num_experts_per_tok, config.n_group, config.topk_group
    if places == 1:
        return 1.0
    if places <= groups and groups % places == 0:
        # Whole groups to a place: it is met if any of its groups is kept.
        own = groups // places
        return places * (1 - math.comb(groups - own, kept) / math.comb(groups, kept))
    # Experts are drawn from the places of the kept groups.
    open_places = places * kept / groups
    return open_places * (1 - (1 - 1 / open_places) ** chosen) if open_places > 1 else 1.0


def exchange_s(config: ModelConfig, roof: Roofline, tokens: float, ep: int) -> float:
    """Return the seconds of one layer's dispatch and combine of so many tokens of each device.

    The network and the fast link work at the same time, so the slower one counts. The backward pass sends as much.
    """
    far = reach(config, ep, roof.hardware.per_node)
    size = tokens * config.hidden_size * (min(BYTES[roof.precision], COMBINED_BYTES) + COMBINED_BYTES)
    return max(roof.network_s(size * far.nodes), roof.link_s(size * far.devices))


def direct_exchange_s(config: ModelConfig, roof: Roofline, tokens: float, ep: int) -> float:
    """Return the seconds of dispatch and combine when each expert is sent to on its own, as low-latency kernels do.

    Source: Insights into DeepSeek-V3 (arXiv 2505.09343), section 2.3.2: (1 + 2) bytes x tokens x experts x width.
    """
    if ep <= 1 or not config.n_routed_experts:
        return 0.0
    size = tokens * config.hidden_size * (min(BYTES[roof.precision], COMBINED_BYTES) + COMBINED_BYTES)
    sent = size * config.num_experts_per_tok
    per_node = roof.hardware.per_node
    if ep <= per_node:
        return roof.link_s(sent * (1 - 1 / ep))
    return roof.network_s(sent * (1 - per_node / ep))
