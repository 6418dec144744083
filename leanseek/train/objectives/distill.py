"""Distillation: a student takes over its teachers' whole next-token distributions, on replies given to both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from leanseek.data.batches import IGNORED, Batch, packed_examples
from leanseek.data.traces import Example
from leanseek.model.count import forward_flops
from leanseek.model.experts import Routing
from leanseek.model.transformer import Transformer
from leanseek.train.balance import expert_counts
from leanseek.train.objectives.cut import share_out
from leanseek.train.objectives.loss import Loss

Direction = Literal["forward", "reverse"]


@dataclass(frozen=True)
class Taught:
    """A reply, and who teaches on it.

    Args:
        example: token ids, and which of them are the reply's.
        teacher: number of the teacher.
    """

    example: Example
    teacher: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that the models read."""
        return len(self.example[0]) - 1

    @property
    def learnt(self) -> int:
        """Tokens that are learnt on."""
        return sum(self.example[1][1:])


@dataclass(frozen=True, eq=False)
class TaughtBatch:
    """Replies of one step.

    Args:
        replies: in any order.
        metrics: figures of how they came about.
    """

    replies: Sequence[Taught]
    metrics: Mapping[str, float] = field(default_factory=dict)
    device: torch.device | str = "cpu"

    @cached_property
    def by_teacher(self) -> list[tuple[int, Batch]]:
        """The replies packed, those of a teacher together, teachers in order."""
        found: dict[int, list[Example]] = {}
        for one in sorted(self.replies, key=lambda one: one.teacher):
            found.setdefault(one.teacher, []).append(one.example)
        return [(teacher, packed_examples(examples).to(self.device)) for teacher, examples in found.items()]

    @property
    def learnt(self) -> int:
        """Tokens that are learnt on."""
        return sum(one.learnt for one in self.replies)

    def pieces(self, count: int, tokens: int | None) -> list[tuple[TaughtBatch, float]]:
        """Return about `count` parts of whole replies, or more, each with its share of the tokens learnt on."""
        taught = [one for one in self.replies if one.learnt]
        whole = sum(one.learnt for one in taught)
        parts = share_out(taught, count, tokens, by_length=True)
        return [(TaughtBatch(part, {}, self.device), sum(o.learnt for o in part) / whole) for part in parts if part]

    def to(self, device: torch.device | str) -> TaughtBatch:
        """Return the batch on a device."""
        return TaughtBatch(self.replies, self.metrics, device)


@dataclass(frozen=True)
class Distill:
    """Mean divergence between student and teacher over the tokens of the replies.

    Args:
        teachers: by number; they do not learn.
        direction: "forward": KL(teacher || student), where the teacher's replies are given; "reverse":
            KL(student || teacher), where they are the student's own.
        temperature: that both distributions are softened by; the loss is multiplied by its square, so that its
            gradient keeps its size (Hinton et al. 2015, arXiv 1503.02531, section 2).
        most_logits: logits of either in memory at once; None: all.
    Source: on-policy over the full vocabulary with several teachers, hidden states first and logits head by head:
        DeepSeek-V4's report.
    """

    teachers: Sequence[Transformer]
    direction: Direction
    temperature: float = 1.0
    most_logits: int | None = None

    def __call__(self, model: Transformer, batch: TaughtBatch) -> Loss:
        """Return the loss of a batch."""
        losses, counts, entropies = [], [], []
        tokens = pairs = rows = 0
        flops = 0.0
        for number, packed in batch.by_teacher:
            teacher, routing = self.teachers[number], Routing()
            learnt = packed.targets_T != IGNORED
            hidden_MD = model(packed.tokens_T, packed.segments, routing=routing)[learnt]
            with torch.no_grad():
                taught_ME = teacher(packed.tokens_T, packed.segments)[learnt]
            kl_M, entropy_M = divergence(
                model,
                hidden_MD,
                teacher,
                taught_ME,
                direction=self.direction,
                temperature=self.temperature,
                most_logits=self.most_logits,
            )
            losses.append(kl_M)
            entropies.append(entropy_M)
            counts.append(expert_counts(routing, model.config.n_routed_experts))
            tokens += packed.segments.tokens
            pairs += packed.segments.pairs
            rows += packed.learnt
            read = {"tokens": packed.segments.tokens, "pairs": packed.segments.pairs, "head_tokens": packed.learnt}
            flops += forward_flops(teacher.config, **read)
        kl = torch.cat(losses).mean()
        figures = {"loss": float(kl.detach()), "entropy": float(torch.cat(entropies).mean())}
        used = [torch.stack(layer).sum(0) for layer in zip(*counts, strict=True)]
        return Loss(kl * self.temperature**2, figures, tokens, pairs, rows, other_flops=flops, counts=used)


def divergence(
    student: Transformer,
    hidden_MD: Tensor,
    teacher: Transformer,
    taught_ME: Tensor,
    *,
    direction: Direction,
    temperature: float = 1.0,
    most_logits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the divergence at each place and the student's entropy there, in nats, float32, [M].

    With a bound, places are taken a few at a time, and their logits are computed anew for the gradient instead of
    being kept: memory is bounded whatever the vocabulary. Rows that one of the heads has beyond the other's are
    padding, and left out.

    Args:
        student: whose head is used, and learns.
        hidden_MD: its hidden states.
        teacher: whose head is used.
        taught_ME: its hidden states.
        direction: as of `Distill`.
        temperature: that both logits are divided by.
        most_logits: logits of either in memory at once, one place's at least; None: all.
    """
    width = min(student.config.vocab_size, teacher.config.vocab_size)

    def of(hidden_MD: Tensor, taught_ME: Tensor) -> tuple[Tensor, Tensor]:
        ours_MW = F.log_softmax(student.logits(hidden_MD)[:, :width].float() / temperature, -1)
        with torch.no_grad():
            theirs_MW = F.log_softmax(teacher.logits(taught_ME)[:, :width].float() / temperature, -1)
        shares_MW = ours_MW.exp()
        if direction == "forward":
            kl_M = (theirs_MW.exp() * (theirs_MW - ours_MW)).sum(-1)
        else:
            kl_M = (shares_MW * (ours_MW - theirs_MW)).sum(-1)
        return kl_M, -(shares_MW * ours_MW).sum(-1).detach()

    count = len(hidden_MD)
    rows = count if most_logits is None else max(1, most_logits // max(student.config.vocab_size, 1))
    if rows >= count:
        return of(hidden_MD, taught_ME)
    parts = [
        checkpoint(of, hidden_MD[at : at + rows], taught_ME[at : at + rows], use_reentrant=False)
        for at in range(0, count, rows)
    ]
    return torch.cat([kl_M for kl_M, _ in parts]), torch.cat([entropy_M for _, entropy_M in parts])
