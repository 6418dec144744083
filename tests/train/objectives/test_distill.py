"""Distillation's divergences: by hand, in pieces as in one, over several teachers, and that they bring models near."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from leanseek.cost.ledger import Charge
from leanseek.model.count import forward_flops
from leanseek.sections.training import TrainSettings
from leanseek.train.objectives.distill import Distill, Taught, TaughtBatch, divergence
from leanseek.train.trainer import Trainer

# Teacher 1/2, 1/4, 1/4 against student 1/8, 1/8, 3/4, worked out with pen and paper:
# forward: 1/2 ln 4 + 1/4 ln 2 - 1/4 ln 3; reverse: -1/8 ln 4 - 1/8 ln 2 + 3/4 ln 3.
TEACHER, STUDENT = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.125, 0.125, 0.75]])
BY_HAND = {"forward": 0.591781, "reverse": 0.564029}


def head_of(vocabulary: int):
    """Return what has logits that are its hidden states."""
    return SimpleNamespace(logits=lambda hidden: hidden, config=SimpleNamespace(vocab_size=vocabulary))


@pytest.mark.parametrize("direction", BY_HAND)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_by_hand(direction, temperature):
    ours, theirs = STUDENT.log() * temperature, TEACHER.log() * temperature
    settings = {"direction": direction, "temperature": temperature}
    kl, entropy = divergence(head_of(3), ours, head_of(3), theirs, **settings)
    assert kl.tolist() == pytest.approx([BY_HAND[direction]], abs=1e-5)
    assert entropy.tolist() == pytest.approx([0.25 * 2.0794415 + 0.75 * 0.2876821], abs=1e-5)
    same, _ = divergence(head_of(3), ours, head_of(3), ours, **settings)
    assert same.tolist() == pytest.approx([0.0], abs=1e-6)


def test_rows_of_padding_are_left_out():
    wide = torch.cat([TEACHER.log(), torch.full((1, 2), 9.0)], 1)
    kl, _ = divergence(head_of(3), STUDENT.log(), head_of(5), wide, direction="forward")
    assert kl.tolist() == pytest.approx([BY_HAND["forward"]], abs=1e-5)


@pytest.mark.parametrize("direction", BY_HAND)
@pytest.mark.parametrize("most", [320, 320 * 22])
def test_pieces_are_the_whole_with_its_gradient(make_model, direction, most):
    student, teacher = make_model(seed=1), make_model(seed=2, hidden_size=48)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 32, generator=generator, requires_grad=True)
    taught = torch.randn(23, 48, generator=generator)

    def found(most_logits):
        kl, entropy = divergence(student, hidden, teacher, taught, direction=direction, most_logits=most_logits)
        return kl, entropy, *torch.autograd.grad(kl.sum(), (hidden, student.lm_head.weight))

    for one, other in zip(found(None), found(most), strict=True):
        assert torch.allclose(one, other, atol=1e-5)  # fp32 sums in another order


def test_memory_does_not_grow_with_the_vocabulary(make_model):
    for vocabulary in (320, 4096):
        model = make_model(vocab_size=vocabulary)
        sizes = [0]

        def note(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        hidden = torch.randn(300, 32, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            divergence(model, hidden, model, hidden.detach(), direction="reverse", most_logits=8 * vocabulary)
        assert max(sizes) <= model.lm_head.weight.numel()


def replies(count: int, teachers: int = 1) -> list[Taught]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for number in range(count):
        ids = torch.randint(5, 300, (6 + number % 5,), generator=generator).tolist()
        made.append(Taught((ids, [False] * 3 + [True] * (len(ids) - 3)), number % teachers))
    return made


def test_each_reply_is_compared_with_its_own_teacher(make_model):
    student, teachers = make_model(seed=1), [make_model(seed=2), make_model(seed=3)]
    taught = replies(8, teachers=2)
    objective = Distill(teachers, "reverse")
    whole = objective(student, TaughtBatch(taught))
    sums = 0.0
    for number, teacher in enumerate(teachers):
        own = [one for one in taught if one.teacher == number]
        alone = Distill([teacher], "reverse")(student, TaughtBatch([Taught(one.example) for one in own]))
        sums += alone.metrics["loss"] * sum(one.learnt for one in own)
    assert whole.metrics["loss"] == pytest.approx(sums / TaughtBatch(taught).learnt, rel=1e-5)
    assert whole.tokens == sum(one.tokens for one in taught) and whole.other_flops > forward_flops(
        teachers[0].config, tokens=1, pairs=1
    )
    parts = TaughtBatch(taught).pieces(3, None)
    assert sum(share for _, share in parts) == pytest.approx(1.0) and len(parts) == 3
    joined = sum(objective(student, part).metrics["loss"] * share for part, share in parts)
    assert joined == pytest.approx(whole.metrics["loss"], rel=1e-5)


@pytest.mark.parametrize("shape", [{}, {"model_type": "qwen3", "num_attention_heads": 4, "num_key_value_heads": 2}])
def test_a_student_comes_near_its_teacher(make_model, shape):
    extra = {"num_nextn_predict_layers": 0} if shape else {}
    student, teacher = make_model(seed=1, **shape, **extra), make_model(seed=2)
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    meter = Charge("distill")
    settings = TrainSettings(steps=30, optimiser={"name": "adamw", "lr": 1e-2})
    trainer = Trainer(student, Distill([teacher], "forward", temperature=2.0), settings, meter)
    batch = TaughtBatch(replies(6))
    losses = [trainer.step(batch)["loss"] for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(p, before[name]) for name, p in teacher.named_parameters())
