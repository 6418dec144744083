"""Store: how much room the texts' latents get, in memory and on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from leanseek.engine.disk import Disk
from leanseek.engine.engine import BLOCK_TOKENS
from leanseek.engine.paged_cache import PagedCache
from leanseek.errors import UsageError
from leanseek.model.cache import CacheSpec

GIB = 1 << 30
USUAL_DISK_GIB = 8.0
# What a default leaves free, and how many times the longest texts of a full batch are remembered at most.
FREE_SHARE = 0.5
REMEMBERED = 4


@dataclass(frozen=True)
class Store:
    """What the command line says of the cache.

    Args:
        gib: of memory; None: half of what is free, as far as it is of use.
        folder: where what is remembered is kept over a restart too; None: nowhere.
        disk_gib: most that the folder may take.
    Raises:
        UsageError: a size that is none.
    """

    gib: float | None = None
    folder: Path | None = None
    disk_gib: float = USUAL_DISK_GIB

    def __post_init__(self) -> None:
        """Refuse what is no size."""
        for option, value in (("cache_gib", self.gib), ("cache_disk_gib", self.disk_gib)):
            if value is not None and not 0 < value < 1 << 20:
                raise UsageError(f"{option} = {value}: more than 0 GiB are needed")

    def bytes_for(self, specs: Sequence[CacheSpec], context_tokens: int, max_batch: int, device: str) -> int:
        """Return how many bytes to take; called when the weights are in memory.

        Args:
            specs: what the layers store of a token.
            context_tokens: longest text.
            max_batch: texts at once.
            device: "cpu" or "cuda".
        """
        if self.gib is not None:
            return int(self.gib * GIB)
        free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
        a_text = (context_tokens // BLOCK_TOKENS + 2) * BLOCK_TOKENS * PagedCache.bytes_per_token(specs)
        return max(min(int(free * FREE_SHARE), REMEMBERED * max_batch * a_text), a_text)

    def disk(self, model: str) -> Disk | None:
        """Return the folder on disk, if there is one.

        Args:
            model: whatever distinguishes these weights and the form of the cache from others.
        """
        if self.folder is None:
            return None
        return Disk(self.folder, model, int(self.disk_gib * GIB))
