"""Spans: which layers each stage of a pipeline has; plain arithmetic, the same on 2 ranks and on 2,048."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from leanseek.cost.balance import balanced
from leanseek.cost.schedules import held_stages, stages_of
from leanseek.model.config import ModelConfig
from leanseek.model.count import layer_products
from leanseek.sections.training import ParallelSettings

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Spans:
    """A model's layers, cut into the stages of a pipeline (here spans: a stage is one of training).

    The first has the embedding; the last has norm, head and MTP layer. The MTP layer, and a head that is tied, need the
    embedding too. Where the layers' way is folded into a V (zbv, dualpipev), one rank has both ends and one embedding;
    else the last rank has a copy, and the two gradients are summed.

    Args:
        config: the model's.
        settings: with the pipeline's ranks and schedule.
    """

    config: ModelConfig
    settings: ParallelSettings

    @property
    def count(self) -> int:
        """How many there are."""
        return stages_of(self.settings.schedule, self.settings.pipeline)

    @cached_property
    def layers(self) -> tuple[range, ...]:
        """The main layers of each span: cut so that the busiest rank has as few products to make as can be."""
        numbers = balanced(self._costs, self.settings.schedule, self.settings.pipeline)
        numbers[-1] -= 1  # the end
        return tuple(range(sum(numbers[:at]), sum(numbers[: at + 1])) for at in range(len(numbers)))

    @property
    def products(self) -> tuple[int, ...]:
        """Weights of each span that a token is multiplied by."""
        found = [sum(self._costs[layer] for layer in layers) for layers in self.layers]
        return (*found[:-1], found[-1] + self._costs[-1])

    @cached_property
    def _costs(self) -> list[int]:
        """Weights that a token is multiplied by, of each layer and of the end: heads and the MTP layer."""
        config = self.config
        costs = [layer_products(config, layer) for layer in range(config.num_hidden_layers)]
        ahead = config.num_nextn_predict_layers > 0
        end = config.vocab_size * config.hidden_size * (1 + ahead)
        return [*costs, end + (layer_products(config, config.num_hidden_layers) if ahead else 0)]

    def of_rank(self, rank: int) -> tuple[int, ...]:
        """Return the spans that a rank of the pipeline has, in order."""
        return tuple(sorted(held_stages(self.settings.schedule, self.settings.pipeline, rank)))

    def holders(self, name: str) -> tuple[int, ...]:
        """Return the ranks of the pipeline that have a parameter or a buffer, by its name; several have copies."""
        return tuple(
            rank
            for rank in range(self.settings.pipeline)
            if any(span in self.of_rank(rank) for span in self._spans(name))
        )

    def _spans(self, name: str) -> tuple[int, ...]:
        last = self.count - 1
        found = _LAYER.match(name)
        if found is not None:
            layer = int(found[1])
            return tuple(at for at, layers in enumerate(self.layers) if layer in layers) or (last,)
        if name != EMBEDDING:
            return (last,)
        shared = self.config.num_nextn_predict_layers > 0 or self.config.tie_word_embeddings
        return (0, last) if shared else (0,)
