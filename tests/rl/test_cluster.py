"""Rollouts by workers elsewhere: the same samples, whoever draws them and whoever is lost on the way."""

from __future__ import annotations

import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from leanseek.checkpoint.directory import save_model
from leanseek.cost.ledger import Charge
from leanseek.engine.engine import Engine
from leanseek.engine.pool import EnginePool
from leanseek.engine.request import SamplingParams
from leanseek.errors import ConfigError, EngineError, RunError
from leanseek.joining import ray_for
from leanseek.log import RunLog
from leanseek.rl.cluster import Cluster, Side, Worker
from leanseek.rl.grpo import grpo
from leanseek.rl.rollouts import Rollouts
from leanseek.rl.stream import copy_of
from leanseek.sections.grpo import GrpoSettings
from leanseek.train.stage import Stage

PARAMS = SamplingParams(max_tokens=8, seed=3, ignore_eos=True, logprobs=0)
OPTIONS = {"max_batch": 8, "max_context_tokens": 64, "record_experts": True}


def replies(outputs) -> list[list[int]]:
    return [output.token_ids for output in outputs]


def shift(model) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)


def test_a_worker_answers_by_the_weights_that_it_was_sent(make_model, tiny_tokenizer):
    model = make_model()
    worker = Worker(model.config, "float32", "cpu", tiny_tokenizer, model.state_dict(), 2, OPTIONS)
    prompts = [[5, 6], [7]]
    first = replies(Engine(model).generate(prompts, PARAMS))
    cluster = SimpleNamespace(
        update=worker.update, config=model.config, tokenizer=tiny_tokenizer, chat=None, generate=None
    )
    side = Side(cluster, copy_of(model), threading.Condition(), 1)
    shift(model)
    side.take(model)
    later = replies(Engine(model).generate(prompts, PARAMS))
    assert later != first
    assert replies(worker.generate(1, prompts, [PARAMS] * 2)) == later
    assert replies(worker.generate(0, prompts, [PARAMS] * 2)) == first, "the other side has kept its own"
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in worker.weights(1).items())


class Lost(Exception):
    """As Ray's, of a worker that is no more."""


class FakeRay:
    """Calls that are answered at once, by workers in this process; those in `lost` are gone."""

    exceptions = SimpleNamespace(RayActorError=Lost, RayTaskError=type("RayTaskError", (Exception,), {}))

    def __init__(self) -> None:
        self.lost: set[int] = set()

    def get(self, call):
        worker, answer = call
        if worker in self.lost:
            raise Lost
        return answer()


class FakeWorker:
    def __init__(self, ray: FakeRay, number: int, engine: Engine) -> None:
        self.asked: list[int] = []
        self.engine = engine

        def generate(side, prompts, params):
            self.asked.append(len(prompts))
            return number, lambda: engine.generate(prompts, params)

        self.generate = SimpleNamespace(remote=generate)


@pytest.fixture
def dealt(tiny_model) -> tuple[Cluster, FakeRay]:
    """A cluster of three workers in this process."""
    cluster, ray = object.__new__(Cluster), FakeRay()
    cluster._ray, cluster._turns = ray, iter(range(1000))
    cluster._workers = [FakeWorker(ray, number, Engine(tiny_model)) for number in range(3)]
    return cluster, ray


@pytest.mark.parametrize("lost", [set(), {1}, {0, 2}])
def test_what_a_lost_worker_had_the_others_get(dealt, tiny_model, lost):
    cluster, ray = dealt
    workers = cluster.workers
    ray.lost = lost
    prompts = [[5 + i, 6] for i in range(7)]
    params = [SamplingParams(max_tokens=4, seed=i, n=1 + i % 2, logprobs=0) for i in range(7)]
    counts: list[int] = []
    got = cluster.generate(0, prompts, params, counts.append)
    assert replies(got) == replies(Engine(tiny_model).generate(prompts, params))
    assert counts[-1] == sum(one.n for one in params)
    assert sorted(worker.asked[0] for worker in workers) == [2, 2, 3]
    assert len(cluster.workers) == 3 - len(lost)
    again = cluster.generate(0, [[9]], [PARAMS], counts.append)
    assert len(again) == 1


def test_without_any_worker_the_run_ends(dealt):
    cluster, ray = dealt
    ray.lost = {0, 1, 2}
    with pytest.raises(RunError, match="every rollout worker is lost"):
        cluster.generate(0, [[5]], [PARAMS], lambda finished: None)
        cluster.generate(0, [[5]], [PARAMS], lambda finished: None)
        cluster.generate(0, [[5]], [PARAMS], lambda finished: None)


def test_without_ray_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'leanseek\[cluster\]'"):
        ray_for("grpo.cluster")


@pytest.fixture
def ray():
    """Ray, if it is installed."""
    return pytest.importorskip("ray", reason="ray is not installed (extra cluster)")


@pytest.fixture
def cluster(ray, make_model, tiny_tokenizer):
    """Two workers on this machine, and the model they know."""
    model = make_model()
    cluster = Cluster(model, tiny_tokenizer, workers=2, options=OPTIONS)
    yield cluster, model
    cluster.close()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_workers_draw_what_is_drawn_here_and_only_changes_travel(cluster, ray, tiny_tokenizer, even):
    cluster, model = cluster
    settings = GrpoSettings(prompts_per_step=4, samples_per_prompt=4, max_new_tokens=10)
    side = cluster.side(copy_of(model), threading.Condition())
    here = Rollouts(EnginePool(model, tiny_tokenizer, **OPTIONS), [even], {}, settings, 0, Charge("test"))
    there = Rollouts(side, [even], {}, settings, 0, Charge("test"))
    for step in range(3):
        side.take(model)
        one, other = there.batch(step), here.batch(step)
        assert [group.replies for group in one.groups] == [group.replies for group in other.groups]
        assert [group.advantages for group in one.groups] == [group.advantages for group in other.groups]
        for worker in cluster.workers:
            weights = ray.get(worker.weights.remote(0))
            assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in weights.items())
        with torch.no_grad():
            model.lm_head.weight[3] += 0.1
    assert cluster.sent_bytes == 2 * 2 * 32 * (4 + 4), "a row of 32 values, twice, to two workers"
    with pytest.raises(EngineError, match="the prompt is empty"):
        side.generate([[]], PARAMS)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_worker_killed_while_it_draws_loses_its_samples_alone(cluster, ray, tiny_model):
    cluster, model = cluster
    prompts = [[5 + i, 6] for i in range(40)]
    params = [SamplingParams(max_tokens=60, seed=i, n=4, ignore_eos=True, logprobs=0) for i in range(40)]
    victim = cluster.workers[0]
    killer = threading.Timer(0.3, lambda: ray.kill(victim))
    killer.start()
    side = cluster.side(copy_of(model), threading.Condition())
    got = side.generate(prompts, params)
    killer.join()
    assert len(cluster.workers) == 1, "or it was killed too late to matter"
    assert replies(got) == replies(Engine(model, max_batch=160).generate(prompts, params))
    shift(model)
    side.take(model)
    assert replies(side.generate(prompts[:2], params[:2])) == replies(Engine(model).generate(prompts[:2], params[:2]))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("staleness", [0, 2])
def test_a_stage_with_workers_is_held_to_the_same_and_survives_a_loss(
    ray, make_run, make_model, tiny_tokenizer, even, monkeypatch, staleness
):
    run = make_run(grpo__cluster=2, grpo__staleness=staleness, grpo__steps=6)
    save_model(make_model(), run.checkpoint("sft", 1), tiny_tokenizer)
    started: list[Cluster] = []

    class Watched(Cluster):
        def __init__(self, *given, **options) -> None:
            super().__init__(*given, **options)
            started.append(self)

    monkeypatch.setattr("leanseek.rl.grpo.Cluster", Watched)

    def evaluate(model) -> dict[str, float]:  # after step 2, in the middle of what follows
        if len(started[0].workers) == 2:
            ray.kill(started[0].workers[0])
            time.sleep(0.2)
        return {}

    chosen = Stage(run, "grpo", tiny_tokenizer, RunLog(run.metrics_path), Charge("test"))
    figures = grpo(chosen, [even], evaluate)
    rows = chosen.log.read("grpo")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert figures["samples"] == 6 * 16
    assert figures["logprob_gap"] < 1e-5 and figures["routing_agreement"] == 1.0
    assert not ray.is_initialized(), "it was shut down again"
