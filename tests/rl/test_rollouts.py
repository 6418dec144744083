"""Rollouts: the same step gives the same batch, the trainer computes what was sampled, and bad replies are data."""

from __future__ import annotations

import itertools

import pytest
import torch

import leanseek.rl.rollouts as module
from leanseek.cost.ledger import Charge
from leanseek.engine.pool import EnginePool
from leanseek.engine.request import Output
from leanseek.envs.environment import load_environment
from leanseek.errors import TaskError
from leanseek.evals.attempts import Attempt
from leanseek.messages import Message
from leanseek.model.count import sampling_flops
from leanseek.rl.rollouts import Rollouts
from leanseek.sections.grpo import GrpoSettings
from leanseek.train.objectives.grpo import Grpo
from leanseek.train.trainer import Trainer

PLAIN = Grpo(clip_low=0.2, clip_high=0.28)


def rollouts_of(model, tokenizer, environments, *, workers=2, seed=0, levels=None, **settings) -> Rollouts:
    values = {"prompts_per_step": 4, "samples_per_prompt": 4, "max_new_tokens": 10} | settings
    chosen = GrpoSettings(**values)
    engine = EnginePool(
        model,
        tokenizer,
        workers=workers,
        max_batch=16,
        max_context_tokens=64,
        record_experts=chosen.replay_routing,
    )
    return Rollouts(engine, environments, levels or {}, chosen, seed, Charge("test"))


def plain(batch) -> list[object]:
    """Return all that a batch holds, to compare."""
    return [
        (g.prompt, g.replies, g.logprobs, g.advantages, g.experts and [e.tolist() for e in g.experts])
        for g in batch.groups
    ]


def test_the_same_step_gives_the_same_batch_whoever_asks_and_whenever(tiny_model, tiny_tokenizer, even):
    rollouts = rollouts_of(tiny_model, tiny_tokenizer, [even])
    first = plain(rollouts.batch(3))
    assert plain(rollouts.batch(4)) != first
    assert plain(rollouts.batch(3)) == first
    assert plain(rollouts_of(tiny_model, tiny_tokenizer, [even]).batch(3)) == first
    assert plain(rollouts_of(tiny_model, tiny_tokenizer, [even], seed=1).batch(3)) != first


def test_replies_to_a_prompt_differ_and_so_do_replies_of_steps(tiny_model, tiny_tokenizer, even):
    rollouts = rollouts_of(tiny_model, tiny_tokenizer, [even])
    replies = [tuple(r) for step in range(3) for g in rollouts.batch(step).groups for r in g.replies]
    assert len(replies) > 24 and len(set(replies)) == len(replies)


def test_no_two_samples_of_a_run_are_drawn_with_the_same_luck(tiny_model, tiny_tokenizer, even, monkeypatch):
    seeds: list[int] = []

    def attempt(engine, problems, params, *, environments, efforts):
        # As evals.attempts has it: reply j of problem i draws with seed + i * n + j.
        seeds.extend(params.seed + i * params.n + j for i in range(len(problems)) for j in range(params.n))
        return [None] * (len(problems) * params.n)

    monkeypatch.setattr(module, "attempt", attempt)
    for seed in range(2):
        rollouts = rollouts_of(tiny_model, tiny_tokenizer, [even], seed=seed)
        for step in range(50):
            rollouts._attempts(step)
    assert len(set(seeds)) == len(seeds) == 2 * 50 * 16


def test_environments_come_in_turn_with_training_problems_of_their_levels():
    tasks = [load_environment(name) for name in ("running_total", "largest", "grid_walk")]
    settings = GrpoSettings(prompts_per_step=8)
    rollouts = Rollouts(None, tasks, {"largest": (4,)}, settings, 0, Charge("test"))
    seen = [rollouts.problems(step) for step in range(12)]
    names = [task.name for task in tasks]
    for problems in seen:
        assert [p.environment for p in problems] == [names[i % 3] for i in range(8)]
        assert {p.split for p in problems} == {"train"}
        assert {p.level for p in problems if p.environment == "largest"} == {4}
    assert {problems[0].level for problems in seen} == set(tasks[0].levels), "each step starts at another level"
    prompts = [p.prompt for problems in seen for p in problems]
    assert len(set(prompts)) > 0.9 * len(prompts)
    assert rollouts.problems(5) == seen[5]
    assert Rollouts(None, tasks, {}, settings, 1, Charge("test")).problems(5) != seen[5]


def gap(rollouts: Rollouts, model, step: int, temperature: float = 1.0) -> dict[str, float]:
    batch = rollouts.batch(step)
    assert len(batch.groups) >= 2
    return Grpo(0.2, 0.28, temperature)(model, batch).metrics


@pytest.mark.parametrize("replay", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_engine_and_trainer_agree_before_and_after_an_update(make_model, tiny_tokenizer, even, temperature, replay):
    """The invariant that RL stands on: what was sampled is what the trainer computes, with the weights of now."""
    model = make_model()
    rollouts = rollouts_of(model, tiny_tokenizer, [even], temperature=temperature, replay_routing=replay)
    trainer = Trainer(model, Grpo(0.2, 0.28, temperature), GrpoSettings(steps=3), Charge("test"), 2)
    before = [p.detach().clone() for p in model.parameters()]
    for step in range(2):
        metrics = gap(rollouts, model, step, temperature)
        assert metrics["logprob_gap"] < 1e-5, step
        assert metrics["clip_fraction"] == 0.0
        assert metrics.get("routing_agreement") == (1.0 if replay else None)
        trainer.step(rollouts.batch(step))
    moved = max(float((a - b.detach()).abs().max()) for a, b in zip(before, model.parameters(), strict=True))
    assert moved > 1e-3, "the second comparison was with other weights"


@pytest.mark.parametrize("cut", [{"top_p": 0.7}, {"top_k": 5}, {"top_p": 0.9, "top_k": 9, "temperature": 0.7}], ids=str)
def test_what_could_have_been_drawn_is_kept_for_the_trainer(make_model, tiny_tokenizer, even, cut):
    """Of a cut distribution the trainer computes the shares among what was left, and the whole one where told so."""
    model = make_model()
    temperature = cut.get("temperature", 1.0)
    kept = rollouts_of(model, tiny_tokenizer, [even], **cut)
    assert gap(kept, model, 0, temperature)["logprob_gap"] < 1e-5
    batch = kept.batch(0)
    support = batch.packed.support
    assert int(support.counts_M.max()) <= cut.get("top_k", 320) and int(support.counts_M.max()) > 1
    for group in batch.groups:
        for reply, places in zip(group.replies, group.supports, strict=True):
            assert all(token in place for token, place in zip(reply, places, strict=True))
    whole = rollouts_of(model, tiny_tokenizer, [even], keep_sampling_mask=False, **cut)
    assert gap(whole, model, 0, temperature)["logprob_gap"] < 1e-5
    assert whole.batch(0).packed.support is None
    pairs = zip(batch.packed.old_M.tolist(), whole.batch(0).packed.old_M.tolist(), strict=True)
    assert all(among >= of_all - 1e-6 for among, of_all in pairs), "a share among fewer is no smaller"


def test_drafts_change_no_sample(make_model, tiny_tokenizer, even):
    model = make_model()
    drafted, without = (
        EnginePool(model, tiny_tokenizer, max_batch=16, max_context_tokens=64, drafts=drafts, record_experts=True)
        for drafts in (2, 0)
    )
    settings = GrpoSettings(prompts_per_step=4, samples_per_prompt=4, max_new_tokens=10)
    found, expected = (Rollouts(e, [even], {}, settings, 0, Charge("test")).batch(2) for e in (drafted, without))
    assert drafted.engines[0].speculation.drafted > 0, "or nothing was tried"
    assert [g.replies for g in found.groups] == [g.replies for g in expected.groups]
    assert PLAIN(model, found).metrics["logprob_gap"] < 1e-5
    assert PLAIN(model, found).metrics["routing_agreement"] == 1.0


def test_weights_that_moved_between_sampling_and_learning_show_as_a_gap(make_model, tiny_tokenizer, even):
    model = make_model()
    batch = rollouts_of(model, tiny_tokenizer, [even]).batch(0)
    with torch.no_grad():
        for layer in model.moe_layers:
            layer.gate.e_score_correction_bias += torch.linspace(-1, 1, 8)
        model.lm_head.weight *= 1.1
    metrics = PLAIN(model, batch).metrics
    assert metrics["logprob_gap"] > 1e-2 and metrics["routing_agreement"] < 1.0


def test_sampling_is_charged(tiny_model, tiny_tokenizer, even):
    rollouts = rollouts_of(tiny_model, tiny_tokenizer, [even], prompts_per_step=2)
    batch = rollouts.batch(0)
    assert len(batch.groups) == 2, "or the comparison below is not over all"
    prompts = [len(group.prompt) for group in batch.groups]
    replies = [[len(reply) for reply in group.replies] for group in batch.groups]
    assert rollouts.meter.tokens == sum(prompts) + sum(map(sum, replies))
    assert rollouts.meter.flops == sampling_flops(tiny_model.config, prompts, replies)
    assert rollouts.meter.forward_flops == rollouts.meter.flops == sum(rollouts.meter.flops_by_part.values())


def test_a_checker_that_raises_is_data(tiny_model, tiny_tokenizer, even, monkeypatch):
    def faulty(self, problem, answer) -> bool:
        if len(answer) % 3 == 0:
            raise ZeroDivisionError("not my day")
        return True

    monkeypatch.setattr(type(even), "check", faulty)
    rollouts = rollouts_of(tiny_model, tiny_tokenizer, [even])
    batch = rollouts.batch(0)
    assert 0 < batch.metrics["checker_errors"] < 16
    assert batch.metrics["correct"] == 1 - batch.metrics["checker_errors"] / 16


def replies(monkeypatch, outcomes: list[list[tuple[bool, bool]]], **changes) -> None:
    """Have the engine's place taken by made-up replies: per problem, (correct, formed) of each."""

    def attempt(engine, problems, params, *, environments, efforts):
        made = []
        for problem, group in zip(problems, outcomes, strict=True):
            for i, (correct, formed) in enumerate(group):
                values = {"logprobs": [-1.0] * (i + 1), "finish_reason": "stop" if formed else "length"}
                experts = torch.zeros(2 + i, 2, 2, dtype=torch.int16)
                output = Output("r", i, [7] * (i + 1), "", experts=experts, **(values | changes))
                made.append(
                    Attempt(problem, [5, 6], Message("assistant", ""), output, {}, correct, formed, output.error)
                )
        return made

    monkeypatch.setattr(module, "attempt", attempt)


RIGHT, FORMED, WRONG = (True, True), (False, True), (False, False)


def test_groups_without_variance_are_left_out_and_all_replies_count(tiny_model, tiny_tokenizer, even, monkeypatch):
    rollouts = rollouts_of(tiny_model, tiny_tokenizer, [even], workers=1)
    replies(monkeypatch, [[RIGHT] * 4, [RIGHT, WRONG, WRONG, FORMED], [WRONG] * 4, [FORMED, FORMED, WRONG, WRONG]])
    batch = rollouts.batch(0)
    assert len(batch.groups) == 1 and batch.groups[0].advantages == pytest.approx([3**0.5, *[-(3**-0.5)] * 3])
    assert batch.groups[0].prompt == [5, 6] and [len(r) for r in batch.groups[0].replies] == [1, 2, 3, 4]
    metrics = batch.metrics
    assert metrics["informative_groups"] == 1 / 4
    assert metrics["reward"] == metrics["correct"] == metrics["correct_even"] == 5 / 16
    assert metrics["format"] == 8 / 16 and metrics["unfinished"] == 8 / 16 and metrics["length"] == 2.5
    assert metrics["samples_per_s"] == pytest.approx(16 / metrics["sample_s"])
    assert "checker_errors" not in metrics


def test_the_format_bonus_counts_in_the_reward_that_is_learnt_and_shown(tiny_model, tiny_tokenizer, even, monkeypatch):
    rollouts = rollouts_of(tiny_model, tiny_tokenizer, [even], workers=1, prompts_per_step=2, format_reward=0.5)
    replies(monkeypatch, [[FORMED, FORMED, WRONG, WRONG], [RIGHT, FORMED, WRONG, WRONG]])
    batch = rollouts.batch(0)
    assert batch.groups[0].advantages == pytest.approx([1.0, 1.0, -1.0, -1.0])
    mean, spread = 0.5, (((1.5 - 0.5) ** 2 + 0 + 2 * 0.25) / 4) ** 0.5
    assert batch.groups[1].advantages == pytest.approx([(r - mean) / spread for r in (1.5, 0.5, 0.0, 0.0)])
    assert batch.metrics["reward"] == (1.0 + 2.0) / 8 and batch.metrics["correct"] == 1 / 8


def test_nothing_informative_is_still_told(tiny_model, tiny_tokenizer, even, monkeypatch):
    rollouts = rollouts_of(tiny_model, tiny_tokenizer, [even], workers=1, prompts_per_step=2)
    replies(monkeypatch, [[WRONG] * 4, [RIGHT] * 4])
    batch = rollouts.batch(0)
    assert not batch.groups and not batch.pieces(2, None) and rollouts.meter.tokens > 0, "sampled and charged"
    assert batch.metrics["correct"] == 0.5 and batch.metrics["informative_groups"] == 0


def test_a_reply_that_broke_off_is_not_learnt_from(tiny_model, tiny_tokenizer, even, monkeypatch):
    rollouts = rollouts_of(tiny_model, tiny_tokenizer, [even], workers=1, prompts_per_step=1)
    replies(monkeypatch, [[RIGHT, WRONG, WRONG, WRONG]], error="not finite", finish_reason="error")
    assert not rollouts.batch(0).groups


def test_groups_that_teach_nothing_are_drawn_again_up_to_a_bound(tiny_model, tiny_tokenizer, even, monkeypatch):
    """Each draw gives right and wrong to the first problem alone."""
    asked: list[list[str]] = []
    seeds: list[int] = []

    def attempt(engine, problems, params, *, environments, efforts):
        asked.append([problem.prompt for problem in problems])
        seeds.extend(params.seed + i * params.n + j for i in range(len(problems)) for j in range(params.n))
        made = []
        for i, problem in enumerate(problems):
            for j in range(4):
                output = Output("r", j, [7], "", logprobs=[-1.0])
                right = i == j == 0
                made.append(Attempt(problem, [5, 6], Message("assistant", ""), output, {}, right, True, None))
        return made

    monkeypatch.setattr(module, "attempt", attempt)
    for refill, rounds in ((0, [4]), (2, [4, 3, 2]), (9, [4, 3, 2, 1])):
        asked.clear()
        seeds.clear()
        rollouts = rollouts_of(tiny_model, tiny_tokenizer, [even], workers=1, refill=refill, replay_routing=False)
        batch = rollouts.batch(3)
        assert [len(problems) for problems in asked] == rounds and len(batch.groups) == len(rounds)
        stream = itertools.islice(rollouts.stream(3), sum(rounds))
        assert [p for problems in asked for p in problems] == [p.prompt for p in stream], "others each time"
        assert len(set(seeds)) == len(seeds) == 4 * sum(rounds) and max(seeds) < 1 << 62
        assert batch.metrics["informative_groups"] == len(rounds) / sum(rounds)
        assert batch.metrics["correct"] == len(rounds) / (4 * sum(rounds))
        assert batch.metrics.get("groups") == (len(rounds) if refill else None)
        assert asked[0] == [problem.prompt for problem in rollouts.problems(3)]


def test_a_penalty_for_length_alone_makes_a_group_informative(tiny_model, tiny_tokenizer, even, monkeypatch):
    rollouts = rollouts_of(tiny_model, tiny_tokenizer, [even], workers=1, prompts_per_step=1, overlong_tokens=8)
    replies(monkeypatch, [[RIGHT] * 4])  # of 1, 2, 3 and 4 of 10 tokens
    batch = rollouts.batch(0)
    found = batch.groups[0].advantages
    mean = (1 + 1 + 0.875 + 0.75) / 4
    assert batch.metrics["reward"] == pytest.approx(mean) and batch.metrics["correct"] == 1.0
    assert found[0] == found[1] > 0 > found[2] > found[3]


@pytest.mark.parametrize("objective", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_a_batch_is_what_its_objective_wants(tiny_model, tiny_tokenizer, even, monkeypatch, objective):
    rollouts = rollouts_of(tiny_model, tiny_tokenizer, [even], workers=1, prompts_per_step=1, objective=objective)
    replies(monkeypatch, [[RIGHT, WRONG, WRONG, WRONG]])
    (group,) = rollouts.batch(0).groups
    centred = [0.75, -0.25, -0.25, -0.25]
    spread = 1.0 if objective == "dr_grpo" else 0.75**0.5 / 2
    assert group.advantages == pytest.approx([value / spread for value in centred])
    assert rollouts.batch(0).cut.by_reply == (objective in ("grpo", "dr_grpo", "gspo"))


def test_rewards_that_fail_are_counted_and_stop_the_run_past_a_share(tiny_model, tiny_tokenizer, even, monkeypatch):
    calls = iter(range(10**6))
    right = type(even.start(next(even.problems("train", 0)))).step

    def step(self, reply):
        if next(calls) % 4 == 0:
            raise ZeroDivisionError("no such luck")
        return right(self, reply)

    monkeypatch.setattr(type(even.start(next(even.problems("train", 0)))), "step", step)
    batch = rollouts_of(tiny_model, tiny_tokenizer, [even], workers=1, most_reward_errors=0.25).batch(0)
    assert batch.metrics["checker_errors"] == 4
    with pytest.raises(TaskError, match=r"4 of 16 replies .* ZeroDivisionError: no such luck"):
        rollouts_of(tiny_model, tiny_tokenizer, [even], workers=1, most_reward_errors=0.2).batch(0)
