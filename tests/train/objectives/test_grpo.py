"""The GRPO loss against a loop over replies, one at a time, without a shared prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from leanseek.cost.ledger import Charge
from leanseek.kernels.likelihood import log_likelihood
from leanseek.model.experts import Routing
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer
from leanseek.rl.grpo import objective_of
from leanseek.sections.grpo import GrpoSettings
from leanseek.sections.training import TrainSettings
from leanseek.train.objectives.cut import Cut
from leanseek.train.objectives.forms import FORMS
from leanseek.train.objectives.grpo import Group, GroupBatch, Grpo
from leanseek.train.trainer import Trainer

PLAIN = Grpo(clip_low=0.2, clip_high=0.28)


def reply_logprobs(model: Transformer, group: Group, index: int, temperature: float = 1.0) -> torch.Tensor:
    """Return a reply's log-probabilities from a forward pass of its own."""
    ids = torch.tensor([*group.prompt, *group.replies[index]])
    replay = None if group.experts is None else group.experts[index].long()
    segments = Segments.single(len(ids) - 1)
    logits = model.logits(model(ids[:-1], segments, routing=Routing(replay_TNK=replay)))
    logprobs = torch.log_softmax(logits[len(group.prompt) - 1 :] / temperature, dim=-1)
    return logprobs.gather(1, ids[len(group.prompt) :, None]).squeeze(1)


def naive(objective: Grpo, model: Transformer, groups: Sequence[Group]) -> torch.Tensor:
    """Return the loss: minus the mean over all reply tokens of the clipped gain, plus the weighted KL."""
    terms = []
    for group in groups:
        for i, advantage in enumerate(group.advantages):
            new = reply_logprobs(model, group, i, objective.temperature)
            ratio = torch.exp(new - torch.tensor(group.logprobs[i]))
            clipped = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
            term = -torch.minimum(ratio * advantage, clipped * advantage)
            if objective.kl_weight:
                with torch.no_grad():
                    reference = reply_logprobs(objective.reference, group, i, objective.temperature)
                gap = reference - new
                term = term + objective.kl_weight * ratio * (torch.exp(gap) - gap - 1)
            terms.append(term)
    return torch.cat(terms).mean()


def groups_of(model: Transformer, *, shift: float = 0.3, temperature: float = 1.0, replay: bool = False) -> list[Group]:
    """Return three groups of uneven replies, one-token ones among them, off policy by up to `shift` a token."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(3, 320, (count,), generator=generator).tolist()

    groups = []
    for prompt, lengths in ((5, (1, 7, 3)), (1, (4, 1)), (9, (2, 2, 6, 1))):
        group = Group(ids(prompt), [ids(n) for n in lengths], [[0.0] * n for n in lengths], [])
        if replay:
            group = replace(group, experts=other_experts(group, generator))
        old = [reply_logprobs(model, group, i, temperature).detach() for i in range(len(lengths))]
        noise = [(2 * torch.rand(len(o), generator=generator) - 1) * shift for o in old]
        logprobs = [(o + n).tolist() for o, n in zip(old, noise, strict=True)]
        groups.append(replace(group, logprobs=logprobs, advantages=[1.0 - 0.8 * i for i in range(len(lengths))]))
    return groups


def other_experts(group: Group, generator: torch.Generator) -> list[torch.Tensor]:
    """Return made-up routings of two MoE layers; the prompt's is the same for all replies."""

    def routing(tokens: int) -> torch.Tensor:
        return torch.rand(tokens, 2, 8, generator=generator).topk(2, dim=-1).indices.to(torch.int16)

    prompt = routing(len(group.prompt))
    return [torch.cat((prompt, routing(len(reply) - 1))) for reply in group.replies]


def gradients(model: Transformer, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


@pytest.mark.parametrize("case", ["plain", "wide", "temperature", "kl", "replay", "all"], ids=str)
def test_the_loss_and_its_gradient_are_the_loops(make_model, case):
    model = make_model()
    temperature = 0.7 if case in ("temperature", "all") else 1.0
    kl = {"kl_weight": 0.5, "reference": make_model(seed=7)} if case in ("kl", "all") else {}
    objective = Grpo(0.2, 0.28, temperature, **kl)
    shift = 0.0 if case == "plain" else 0.6
    groups = groups_of(model, shift=shift, temperature=temperature, replay=case in ("replay", "all"))
    expected = naive(objective, model, groups)
    found = objective(model, GroupBatch(groups))
    assert float(found.total.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    wanted, got = gradients(model, expected), gradients(model, found.total)
    assert wanted.keys() == got.keys() and any(float(gradient.abs().max()) > 1e-3 for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert torch.allclose(got[name], gradient, atol=2e-5), name


def test_what_a_batch_counts(make_model):
    model = make_model()
    groups = groups_of(model)
    loss, batch = PLAIN(model, GroupBatch(groups)), GroupBatch(groups)
    # Prompts are read once and a reply's last token never: (5 + 0 + 6 + 2) + (1 + 3 + 0) + (9 + 1 + 1 + 5 + 0).
    assert loss.tokens == batch.tokens == batch.segments.tokens == 13 + 4 + 16
    assert loss.head_tokens == batch.reply_tokens == 11 + 5 + 11
    assert [int(count.sum()) for count in loss.counts] == [loss.tokens * 2] * 2
    assert not loss.mtp and loss.pairs == batch.segments.pairs


def one_token_group(model: Transformer, ratios: Sequence[float], advantages: Sequence[float]) -> Group:
    """Return replies of one token each whose probability is `ratio` times the old one."""
    group = Group([5, 6, 7], [[20 + i] for i in range(len(ratios))], [], advantages)
    new = [float(reply_logprobs(model, group, i).detach()) for i in range(len(ratios))]
    return replace(group, logprobs=[[n - math.log(ratio)] for n, ratio in zip(new, ratios, strict=True)])


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain", "learns"),
    [
        (1.5, 1.0, 1.28, False),  # grown enough
        (1.2, 1.0, 1.2, True),
        (0.5, 1.0, 0.5, True),  # fallen too far: may come back
        (1.5, -1.0, -1.5, True),  # grown though it was bad: may go back
        (0.9, -1.0, -0.9, True),
        (0.5, -1.0, -0.8, False),  # fallen enough
    ],
)
def test_the_ratio_counts_within_the_clip_on_the_side_where_it_would_gain(make_model, ratio, advantage, gain, learns):
    model = make_model()
    loss = PLAIN(model, GroupBatch([one_token_group(model, [ratio], [advantage])]))
    assert float(loss.total.detach()) == pytest.approx(-gain, abs=1e-4)
    largest = max(float(gradient.abs().max()) for gradient in gradients(model, loss.total).values())
    assert (largest > 1e-4) if learns else (largest == 0.0)
    assert loss.metrics["clip_fraction"] == float(not 0.8 <= ratio <= 1.28)


@torch.no_grad()
def test_every_token_weighs_the_same_and_not_every_reply(make_model):
    model = make_model()
    group = Group([5, 6], [[9], [10, 11, 12]], [], [1.0, -0.5])
    logprobs = [reply_logprobs(model, group, i).tolist() for i in range(2)]
    loss = PLAIN(model, GroupBatch([replace(group, logprobs=logprobs)]))
    assert float(loss.total) == pytest.approx(-(1 * 1.0 + 3 * -0.5) / 4, abs=1e-5)
    everything = [value for one in logprobs for value in one]
    assert loss.metrics["entropy"] == pytest.approx(-sum(everything) / 4, rel=1e-4)
    assert loss.metrics["logprob_gap"] < 1e-5 and loss.metrics["clip_fraction"] == 0.0
    assert loss.metrics["loss"] == pytest.approx(float(loss.total))


@torch.no_grad()
def test_the_gap_to_the_old_policy_is_told(make_model):
    model = make_model()
    loss = PLAIN(model, GroupBatch([one_token_group(model, [math.exp(0.5), math.exp(-0.1)], [1.0, -1.0])]))
    assert loss.metrics["logprob_gap"] == pytest.approx(0.5, abs=1e-4)
    assert loss.metrics["logprob_gap_mean"] == pytest.approx(0.3, abs=1e-4)


@torch.no_grad()
def test_the_kl_to_the_model_itself_is_nothing_and_to_another_something(make_model):
    model = make_model()
    batch = GroupBatch(groups_of(model))
    plain = float(PLAIN(model, batch).total)
    same, other = (Grpo(0.2, 0.28, 1.0, 0.3, reference)(model, batch) for reference in (model, make_model(seed=7)))
    assert same.metrics["kl"] == pytest.approx(0.0, abs=1e-6) and float(same.total) == pytest.approx(plain, abs=1e-6)
    assert other.metrics["kl"] > 0.01 and other.references == 1
    assert float(other.total) == pytest.approx(plain + 0.3 * other.metrics["kl"], rel=1e-4)
    assert other.metrics["loss"] == pytest.approx(plain, abs=1e-6), "the policy's own part"


@torch.no_grad()
def test_replayed_experts_are_used_and_compared(make_model):
    model = make_model()
    batch = GroupBatch(groups_of(model, replay=True))
    loss = PLAIN(model, batch)
    dictated = batch.packed.replay_TNK
    for layer, count in enumerate(loss.counts):
        assert torch.equal(count, torch.bincount(dictated[:, layer].reshape(-1), minlength=8))
    assert 0.0 < loss.metrics["routing_agreement"] < 0.3, "made-up routings agree by chance alone"
    own = Routing()
    model(batch.packed.tokens_T, batch.segments, routing=own)
    itself = []
    for group, start in zip(batch.groups, (0, 13, 17), strict=True):
        rows, at = own.stacked()[start : start + group.tokens], len(group.prompt)
        routings = []
        for reply in group.replies:
            routings.append(torch.cat((rows[: len(group.prompt)], rows[at : at + len(reply) - 1])))
            at += len(reply) - 1
        # In another order, the same experts are the same choice.
        itself.append(replace(group, experts=[routing.flip(-1).to(torch.int16) for routing in routings]))
    again = PLAIN(model, GroupBatch(itself))
    assert again.metrics["routing_agreement"] == 1.0
    free = PLAIN(model, GroupBatch([replace(group, experts=None) for group in batch.groups]))
    assert float(again.total) == pytest.approx(float(free.total), abs=1e-5)
    assert "routing_agreement" not in free.metrics


@pytest.mark.parametrize(("count", "tokens", "expected"), [(1, None, 1), (1, 9, 3), (2, None, 2), (8, None, 3)])
def test_pieces_are_whole_groups_and_sum_to_the_whole(make_model, count, tokens, expected):
    model = make_model()
    batch = GroupBatch(groups_of(model), {"reward": 0.5})
    pieces = batch.pieces(count, tokens)
    assert len(pieces) == expected
    assert [group for piece, _ in pieces for group in piece.groups] == list(batch.groups)
    assert sum(share for _, share in pieces) == pytest.approx(1.0)
    whole = PLAIN(model, batch)
    parts = sum(PLAIN(model, piece).total * share for piece, share in pieces)
    assert float(parts.detach()) == pytest.approx(float(whole.total.detach()), abs=1e-6)


def test_workers_share_a_batch_and_learn_the_same(make_model):
    model = make_model()
    batch = GroupBatch(groups_of(model, shift=0.6, replay=True), {"reward": 0.5})
    found = []
    for workers in (1, 2, 2):
        trainer = Trainer(model, PLAIN, TrainSettings(steps=1), Charge("test"), workers)
        metrics = trainer._gradients(batch)
        found.append(({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, metrics))
    (whole, metrics), (parts, of_parts), (again, _) = found
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        assert torch.allclose(parts[name], gradient, atol=1e-6) and torch.equal(parts[name], again[name]), name
    # The router is compared over tokens and the rest over reply tokens, so that one is a mean of means.
    assert of_parts.pop("routing_agreement") == pytest.approx(metrics.pop("routing_agreement"), abs=0.1)
    assert of_parts == pytest.approx(metrics, rel=1e-4, abs=1e-6)


def test_a_batch_goes_to_a_device_and_keeps_its_metrics():
    batch = GroupBatch([Group([5], [[6], [7, 8]], [[-1.0], [-1.0, -2.0]], [1.0, -1.0])], {"reward": 0.5})
    moved = batch.to("meta")
    assert moved.metrics == {"reward": 0.5} and moved.packed.tokens_T.device.type == "meta"
    assert batch.packed.tokens_T.tolist() == [5, 7] and batch.packed.rows_M.tolist() == [0, 0, 1]
    assert batch.packed.targets_M.tolist() == [6, 7, 8] and batch.packed.replay_TNK is None


def first_form(model: Transformer, groups: Sequence[Group]) -> torch.Tensor:
    """The loss as it was before it had other forms, operation by operation: runs of then must be runs of now."""
    packed = GroupBatch(groups).packed
    hidden_TD = model(packed.tokens_T, GroupBatch(groups).segments, routing=Routing(replay_TNK=packed.replay_TNK))
    logits_MW = model.logits(hidden_TD.index_select(0, packed.rows_M)).float()
    logprobs_M = log_likelihood(logits_MW, packed.targets_M)
    ratio_M = torch.exp(logprobs_M - packed.old_M)
    clipped_M = ratio_M.clamp(1 - 0.2, 1 + 0.28)
    return -torch.minimum(ratio_M * packed.advantages_M, clipped_M * packed.advantages_M).mean()


@pytest.mark.parametrize("replay", [True, False])
def test_the_default_is_bit_by_bit_what_it_was_before_there_were_forms(make_model, replay):
    model = make_model()
    groups = groups_of(model, shift=0.6, replay=replay)
    expected, found = first_form(model, groups), objective_of(GrpoSettings())(model, GroupBatch(groups)).total
    assert torch.equal(expected, found) and float(found.detach()) != 0.0
    wanted, got = gradients(model, expected), gradients(model, found)
    assert wanted.keys() == got.keys() and all(torch.equal(wanted[name], got[name]) for name in wanted)
    one, (whole, share) = GroupBatch(groups).updates()[0], GroupBatch(groups).pieces(1, None)[0]
    assert one.groups == whole.groups == groups and share == 1.0


def by_loop(objective: Grpo, model: Transformer, groups: Sequence[Group]) -> float:
    """Return the loss of any form, a reply at a time."""
    replies = []
    for group in groups:
        for i, advantage in enumerate(group.advantages):
            new, old = reply_logprobs(model, group, i).detach(), torch.tensor(group.logprobs[i])
            if objective.off_policy is not None and advantage < 0 and float((old - new).mean()) > objective.off_policy:
                replies.append(torch.zeros(len(old)))
                continue
            log_ratio = (new - old).mean().expand(len(old)) if objective.ratio == "reply" else new - old
            ratio = log_ratio.exp()
            clipped = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
            gain = torch.minimum(ratio * advantage, clipped * advantage)
            replies.append(clipped * advantage * new if objective.ratio == "weight" else gain)
    if objective.average == "tokens":
        return -float(torch.cat(replies).mean())
    if objective.average == "replies":
        return -float(torch.stack([reply.mean() for reply in replies]).mean())
    return -float(torch.cat(replies).sum()) / (len(replies) * objective.longest)


@pytest.mark.parametrize("settings", [{}, {"off_policy": 0.05}, {"most_logits": 2 * 320}], ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_its_loop_and_its_pieces_sum_to_the_whole(make_model, name, settings):
    model = make_model()
    groups = groups_of(model, shift=0.6)
    chosen = GrpoSettings(objective=name, max_new_tokens=12, **settings)
    objective = objective_of(chosen)
    cut = Cut(by_reply=FORMS[name].average != "tokens")
    batch = GroupBatch(groups, cut=cut)
    whole = objective(model, batch)
    assert float(whole.total.detach()) == pytest.approx(by_loop(objective, model, groups), abs=2e-5)
    assert ("off_policy_fraction" in whole.metrics) == ("off_policy" in settings)
    if "off_policy" in settings:
        assert 0 < whole.metrics["off_policy_fraction"] < 1
    for by_length in (False, True):
        pieces = GroupBatch(groups, cut=replace(cut, by_length=by_length)).pieces(3, None)
        assert len(pieces) == 3 and sum(share for _, share in pieces) == pytest.approx(1.0)
        parts = sum(objective(model, piece).total * share for piece, share in pieces)
        assert float(parts.detach()) == pytest.approx(float(whole.total.detach()), abs=1e-6)


def test_updates_see_every_group_once_an_epoch(make_model):
    groups = groups_of(make_model())
    batch = GroupBatch(groups, {"reward": 0.5}, cut=Cut(epochs=3, minibatches=2))
    updates = batch.to("cpu").updates()
    assert len(updates) == 6
    for at in range(0, 6, 2):
        assert sorted(map(id, (g for u in updates[at : at + 2] for g in u.groups))) == sorted(map(id, groups))
    assert len(GroupBatch(groups[:1], cut=Cut(2, 3)).updates()) == 2, "no step on nothing"
    assert GroupBatch([], cut=Cut(2, 3)).updates() == []


def test_several_steps_are_taken_on_a_batch_and_the_first_tells_the_gap(make_model):
    losses = []
    for epochs in (1, 3):
        model = make_model()
        groups = groups_of(model, shift=0.0)
        trainer = Trainer(
            model, PLAIN, TrainSettings(steps=1, optimiser={"name": "adamw", "lr": 1e-3}), Charge("test"), 2
        )
        metrics = trainer.step(GroupBatch(groups, cut=Cut(epochs=epochs, minibatches=2)))
        assert trainer.optimiser.steps == 2 * epochs and trainer.done == 0
        assert metrics["logprob_gap"] < 1e-5, "of the step before which no weight had moved"
        assert metrics.keys() >= {"gradient_norm", "lr_factor", "clip_fraction"}
        losses.append(float(PLAIN(model, GroupBatch(groups)).total.detach()))
    assert losses[1] < losses[0]


@torch.no_grad()
def test_replies_drawn_from_a_support_are_learnt_on_it(make_model):
    """With its own shares among what could be drawn as the old ones, the ratio is 1 everywhere."""
    model = make_model()
    group = groups_of(model, shift=0.0)[0]
    supports, logprobs = [], []
    for reply in group.replies:
        ids = torch.tensor([*group.prompt, *reply])
        logits = model.logits(model(ids[:-1], Segments.single(len(ids) - 1)))[len(group.prompt) - 1 :]
        kept = [[int(token), *range(300, 300 + at % 4)] for at, token in enumerate(reply)]
        supports.append(kept)
        logprobs.append(
            [float(torch.log_softmax(row[tokens], -1)[0]) for row, tokens in zip(logits.float(), kept, strict=True)]
        )
    known = replace(group, supports=supports, logprobs=logprobs)
    loss = PLAIN(model, GroupBatch([known]))
    assert loss.metrics["logprob_gap"] < 1e-5
    assert PLAIN(model, GroupBatch([replace(known, supports=None)])).metrics["logprob_gap"] > 1.0
    chunked = replace(PLAIN, most_logits=640)(model, GroupBatch([known]))
    assert float(chunked.total) == pytest.approx(float(loss.total), abs=1e-6)
