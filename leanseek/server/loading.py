"""Loading: how a model folder becomes an engine that answers."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from leanseek.checkpoint.packed import FORMS, WEIGHTS, open_model, packed_bytes
from leanseek.checkpoint.stored import mapped_bytes
from leanseek.cost.energy import EnergyMeter
from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.errors import CheckpointError, UsageError
from leanseek.kernels.registry import kernels_named
from leanseek.server.bridge import Report
from leanseek.server.defaults import SamplingDefaults
from leanseek.server.service import ALIASES, Served
from leanseek.server.store import Store
from leanseek.tokens.tokenizer import Tokenizer
from leanseek.units import format_bytes

MOST_DRAFTS = 8
TRIAL_TOKENS = 32
# The share of a start that is told as the reading of weights; the rest does not grow with them.
READING = 0.9


def keep_objects() -> None:
    """Have the garbage collector pass over all that there is now; for a process that does nothing but serve.

    Torch alone is a million objects that never go: looking through them would hold up every reply for long.
    """
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Loading:
    """A model folder, and how it is to be served.

    Args:
        folder: with config.json, weights and tokenizer.
        weights: what the weights are kept in, of `WEIGHTS`.
        device: "cpu" or "cuda".
        max_batch: replies that are drawn at once.
        store: room for the texts' latents.
        drafts: tokens that the MTP layer drafts at once; None: 1 where there is such a layer.
        invariant: whether replies have the same bits whatever else runs; on a CPU.
    Raises:
        UsageError: a value out of its range.
    """

    folder: Path
    weights: str
    device: str
    max_batch: int
    store: Store
    drafts: int | None = None
    invariant: bool = True

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.weights not in WEIGHTS:
            raise UsageError(f"weights = {self.weights!r}: accepted are {', '.join(WEIGHTS)}")
        if self.max_batch < 1:
            raise UsageError(f"max_batch = {self.max_batch}: at least 1 is needed")
        if self.drafts is not None and not 0 <= self.drafts <= MOST_DRAFTS:
            raise UsageError(f"drafts = {self.drafts}: 0 to {MOST_DRAFTS} are accepted")

    @property
    def fingerprint(self) -> str:
        """A short name that changes with the program, the form of the weights and the files."""
        try:
            program = version("leanseek")
        except PackageNotFoundError:  # run from a folder that was never installed
            program = "unknown"
        digest = hashlib.sha256(f"{program} {self.weights}".encode())
        for path in sorted([*self.folder.glob("*.safetensors"), *self.folder.glob("*.json")]):
            state = path.stat()
            digest.update(f"{path.name} {state.st_size} {state.st_mtime_ns}".encode())
        return f"fp_{digest.hexdigest()[:12]}"

    def engine(self, report: Report) -> Engine:
        """Make the engine.

        Args:
            report: is told how far it is.
        Raises:
            CheckpointError: the folder cannot be loaded, or the weights are broken.
            EngineError: the cache is too small, or its folder cannot be used.
        """
        size = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        reading = f"reading {format_bytes(size)} of weights"
        report(reading, 0.0)
        tokenizer = Tokenizer.load(self.folder)
        model = open_model(
            self.folder,
            self.weights,
            device=self.device,
            progress=lambda share: report(reading, READING * share),
        )
        report("trying a first token", READING)
        # By an engine of its own: nothing of the trial is to be remembered.
        trial = Engine(model, tokenizer, max_batch=1, max_context_tokens=TRIAL_TOKENS)
        # So that broken weights show now, and the first client does not wait for what is done once.
        params = SamplingParams(max_tokens=1, temperature=0.0)
        output = trial.generate([[trial.config.bos_token_id]], params)[0]
        if output.error is not None:
            raise CheckpointError(f"{self.folder}: {output.error}")
        report("making room for texts", (1 + READING) / 2)
        drafts = int(model.mtp_layer is not None) if self.drafts is None else self.drafts
        specs = model.cache_specs()[: model.config.num_hidden_layers + bool(drafts)]
        longest = model.config.max_position_embeddings
        mapped = packed_bytes(model.config, self.weights) if self.weights in FORMS else mapped_bytes(model)
        room = self.store.bytes_for(specs, longest, self.max_batch, self.device, mapped)
        # What other operators computed has other bits: it may not be taken for what these compute.
        computed_by = f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()} {kernels_named()}"
        operators = computed_by if self.invariant else "any"
        disk = self.store.disk(f"{self.fingerprint} {drafts > 0} {operators}")
        return Engine(
            model,
            tokenizer,
            max_batch=self.max_batch,
            cache_bytes=room,
            disk=disk,
            drafts=drafts,
            invariant=self.invariant,
        )

    def served(self, name: str | None = None, aliases: Sequence[str] = ()) -> Served:
        """Return what the folder is served as.

        Args:
            name: the model's id in requests; None: the folder's name.
            aliases: further names, besides DeepSeek's.
        Raises:
            CheckpointError: the folder's generation_config.json is wrong.
        """
        return Served(
            name or self.folder.resolve().name,
            self.fingerprint,
            SamplingDefaults.load(self.folder),
            aliases=tuple(dict.fromkeys((*aliases, *ALIASES))),
        )

    def meter(self) -> EnergyMeter:
        """Return what counts this machine's joules."""
        if self.device != "cuda" or not torch.cuda.is_available():  # what is wrong with the device, loading says
            return EnergyMeter()
        uuid = torch.cuda.get_device_properties(0).uuid
        return EnergyMeter(self.device, gpu_name=torch.cuda.get_device_name(), gpu_uuid=f"GPU-{uuid}")
