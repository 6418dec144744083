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
from leanseek.server.container import left_bytes

GIB = 1 << 30
USUAL_DISK_GIB = 8.0
# What a default leaves of what is free, for what a step computes with, the requests' texts and whatever else runs: a
# tenth, but at least a GiB (half of it all where there is less than two), as the latter do not shrink with the room.
LEFT_SHARE = 0.1
LEFT_BYTES = GIB
# How many times the longest texts of a full batch are remembered at most: more would be of little use.
REMEMBERED = 4


@dataclass(frozen=True)
class Store:
    """What the command line says of the cache.

    Args:
        gib: of memory; None: what is free but for a margin, as far as it is of use.
        folder: where what is remembered is kept over a restart too; None: nowhere.
        disk_gib: most that the folder may take.
        sharers: processes of this machine that each take a part like this one's, where `gib` is None.
    Raises:
        UsageError: a size that is none.
    """

    gib: float | None = None
    folder: Path | None = None
    disk_gib: float = USUAL_DISK_GIB
    sharers: int = 1

    def __post_init__(self) -> None:
        """Refuse what is no size."""
        for option, value in (("cache_gib", self.gib), ("cache_disk_gib", self.disk_gib)):
            if value is not None and not 0 < value < 1 << 20:
                raise UsageError(f"{option} = {value}: more than 0 GiB are needed")

    def bytes_for(
        self, specs: Sequence[CacheSpec], context_tokens: int, max_batch: int, device: str, mapped_bytes: int = 0
    ) -> int:
        """Return how many bytes to take; called when the weights are in memory.

        Args:
            specs: what the layers store of a token.
            context_tokens: longest text.
            max_batch: texts at once.
            device: "cpu" or "cuda".
            mapped_bytes: weights that lie in mapped files: they count as free, but must stay in memory to be quick.
        """
        if self.gib is not None:
            return int(self.gib * GIB)
        free = torch.cuda.mem_get_info()[0] if device == "cuda" else max(_free_bytes() - mapped_bytes, 0)
        left = max(int(free * LEFT_SHARE), min(LEFT_BYTES, free // 2))
        a_text = (context_tokens // BLOCK_TOKENS + 2) * BLOCK_TOKENS * PagedCache.bytes_per_token(specs)
        return min((free - left) // self.sharers, REMEMBERED * max_batch * a_text)

    def disk(self, model: str) -> Disk | None:
        """Return the folder on disk, if there is one.

        Args:
            model: whatever distinguishes these weights and the form of the cache from others.
        """
        if self.folder is None:
            return None
        return Disk(self.folder, model, int(self.disk_gib * GIB))


def _free_bytes() -> int:
    """Return what this process may still take: of the machine's memory, and of its container's."""
    free, left = psutil.virtual_memory().available, left_bytes()
    return free if left is None else min(free, left)
