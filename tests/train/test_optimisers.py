"""Muon makes orthogonal updates, AdamW is torch's, and a loaded state goes on as if nothing had happened."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import leanseek.train.optimisers as module
from leanseek.sections.training import OptimiserSettings
from leanseek.train.optimisers import UPDATE_RMS, Optimiser, orthogonalise


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def error(request, monkeypatch) -> float:
    """Run a test with the iteration in each precision; return how exact its result can be."""
    monkeypatch.setattr(module, "_iteration_dtype", lambda _: request.param)
    return 1e-4 if request.param == torch.float32 else 0.03


def give_gradients(model: nn.Module, seed: int) -> None:
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = draw(*parameter.shape, seed=1000 * seed + i)


@pytest.mark.parametrize("shape", [(8, 8), (4, 20), (20, 4), (1, 5), (3, 16, 6)])
def test_singular_values_come_near_one(shape, error):
    matrices = (
        draw(*shape) * torch.tensor([1e-3, 1.0, 50.0])[: shape[0], None, None] if len(shape) == 3 else draw(*shape)
    )
    orthogonal = orthogonalise(matrices)
    assert orthogonal.dtype == torch.float32
    values = torch.linalg.svdvals(orthogonal)
    assert bool((values > 0.6).all()) and bool((values < 1.25).all())


def test_the_directions_stay(error):
    """U S V' becomes roughly U V': the update keeps the sides and forgets the sizes."""
    u, _, v = torch.linalg.svd(draw(6, 10), full_matrices=False)
    matrix = u @ torch.diag(torch.tensor([5.0, 4, 3, 2, 1.5, 1])) @ v
    inner = u.T @ orthogonalise(matrix) @ v.T
    assert float((inner - torch.diag(torch.diagonal(inner))).abs().max()) < error
    assert bool((torch.diagonal(inner) > 0.6).all())


def test_a_stack_is_each_alone_and_zero_stays_zero(error):
    stack = draw(5, 7, 4)
    assert torch.allclose(orthogonalise(stack), torch.stack([orthogonalise(m) for m in stack]), atol=error)
    assert float(orthogonalise(torch.zeros(2, 3, 3)).abs().max()) == 0.0


def test_who_gets_muon(make_model):
    optimiser = Optimiser(make_model(q_lora_rank=6), OptimiserSettings())
    assert {name.rsplit("layers.1.")[-1] for name in optimiser.matrices if "layers.1." in name} == {
        "self_attn.q_a_proj.weight",
        "self_attn.q_b_proj.weight",
        "self_attn.kv_a_proj_with_mqa.weight",
        "self_attn.kv_b_proj.weight",
        "self_attn.o_proj.weight",
        "mlp.experts.gate_up_proj",
        "mlp.experts.down_proj",
        "mlp.shared_experts.gate_proj.weight",
        "mlp.shared_experts.up_proj.weight",
        "mlp.shared_experts.down_proj.weight",
    }
    assert "model.layers.3.eh_proj.weight" in optimiser.matrices
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.layers.1.mlp.gate.weight"):
        assert name in optimiser.others
    everything = Optimiser(make_model(), OptimiserSettings(name="adamw"))
    assert not everything.matrices and len(everything.others) == len(list(make_model().parameters()))


class Layers(nn.Module):
    """Stacked experts beside the same experts as single matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(draw(3, 8, 6))
        self.down_proj = nn.Parameter(draw(3, 6, 4, seed=1))
        self.gates = nn.ParameterList(draw(3, 8, 6)[i, :4].clone() for i in range(3))
        self.ups = nn.ParameterList(draw(3, 8, 6)[i, 4:].clone() for i in range(3))
        self.downs = nn.ParameterList(draw(3, 6, 4, seed=1)[i].clone() for i in range(3))


def test_stacked_experts_move_as_each_expert_alone(error):
    model = Layers()
    optimiser = Optimiser(model, OptimiserSettings(lr=0.05, weight_decay=0.1))
    for step in range(3):
        gradient, down = draw(3, 8, 6, seed=10 + step), draw(3, 6, 4, seed=20 + step)
        model.gate_up_proj.grad, model.down_proj.grad = gradient, down
        for i in range(3):
            model.gates[i].grad, model.ups[i].grad = gradient[i, :4].clone(), gradient[i, 4:].clone()
            model.downs[i].grad = down[i].clone()
        optimiser.step(1.0)
    for i in range(3):
        assert torch.allclose(model.gate_up_proj[i], torch.cat((model.gates[i], model.ups[i])), atol=error)
        assert torch.allclose(model.down_proj[i], model.downs[i], atol=error)


def test_muons_first_step_is_a_scaled_orthogonal_matrix(error):
    model = nn.Linear(6, 9, bias=False)
    before, gradient = model.weight.detach().clone(), draw(9, 6)
    model.weight.grad = gradient.clone()
    Optimiser(model, OptimiserSettings(lr=0.1, momentum=0.9, weight_decay=0.5)).step(0.5)
    moved = before * (1 - 0.05 * 0.5) - 0.05 * UPDATE_RMS * 9**0.5 * orthogonalise(gradient)
    assert torch.allclose(model.weight, moved, atol=error)


def test_muons_momentum_is_nesterovs(error):
    model = nn.Linear(5, 5, bias=False)
    optimiser = Optimiser(model, OptimiserSettings(lr=0.1, momentum=0.8))
    momentum, weight = torch.zeros(5, 5), model.weight.detach().clone()
    for step in range(3):
        gradient = draw(5, 5, seed=step)
        model.weight.grad = gradient.clone()
        optimiser.step(1.0)
        momentum = 0.8 * momentum + 0.2 * gradient
        weight = weight - 0.1 * UPDATE_RMS * 5**0.5 * orthogonalise(0.2 * gradient + 0.8 * momentum)
    assert torch.allclose(model.weight, weight, atol=error)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_torchs(weight_decay):
    ours, theirs = (nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    settings = OptimiserSettings(name="adamw", lr=0.03, beta2=0.95, weight_decay=weight_decay)
    mine = Optimiser(ours, settings)
    torchs = torch.optim.AdamW(theirs.parameters(), lr=0.03, betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay)
    for step in range(20):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        factor = 1 - step / 40
        for group in torchs.param_groups:
            group["lr"] = 0.03 * factor
        mine.step(factor)
        torchs.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_norm_is_told_and_cut(make_model):
    model = make_model()
    give_gradients(model, 0)
    expected = float(torch.cat([p.grad.reshape(-1) for p in model.parameters()]).norm())
    optimiser = Optimiser(model, OptimiserSettings(clip=1.0))
    assert optimiser.clip() == pytest.approx(expected, rel=1e-5)
    assert optimiser.clip() == pytest.approx(1.0, rel=1e-4)
    loose = Optimiser(model, OptimiserSettings(clip=5.0))
    assert loose.clip() == pytest.approx(1.0, rel=1e-4), "within the bound nothing is scaled"


def test_parameters_without_a_gradient_stay(make_model):
    """The MTP layer, where its loss is off."""
    model = make_model()
    give_gradients(model, 0)
    still = {name: p.detach().clone() for name, p in model.mtp_layer.named_parameters()}
    for parameter in model.mtp_layer.parameters():
        parameter.grad = None
    optimiser = Optimiser(model, OptimiserSettings(weight_decay=0.1))
    optimiser.clip()
    optimiser.step(1.0)
    assert all(torch.equal(p, still[name]) for name, p in model.mtp_layer.named_parameters())
    optimiser.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_low_precision_weights_gather_steps_too_small_for_them(name):
    """bf16 holds three digits: added one by one, small steps would be lost."""
    model = nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    before = model.weight.data.fill_(0.75).clone()
    optimiser = Optimiser(model, OptimiserSettings(name=name, lr=1e-4))
    for step in range(400):
        model.weight.grad = torch.eye(4, dtype=torch.bfloat16)
        optimiser.step(1.0)
        assert step > 2 or torch.equal(model.weight, before), "one step is below what bf16 can show"
    assert model.weight.dtype == torch.bfloat16
    moved = before.diagonal().float() - model.weight.detach().diagonal().float()
    size = 1.0 if name == "adamw" else float(orthogonalise(torch.eye(4))[0, 0]) * UPDATE_RMS * 2
    assert moved.tolist() == pytest.approx([400 * 1e-4 * size] * 4, abs=0.003)  # bf16's step here is 0.004


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_loaded_state_goes_on_exactly(make_model, name):
    settings = OptimiserSettings(name=name)
    whole, first = make_model(), make_model()
    one, two = Optimiser(whole, settings), Optimiser(first, settings)
    for step in range(4):
        give_gradients(whole, step)
        one.step(1.0)
        if step < 2:
            give_gradients(first, step)
            two.step(1.0)
    second = make_model(seed=9)
    second.load_state_dict(first.state_dict())
    three = Optimiser(second, settings)
    kept = {
        key: {n: t.clone() for n, t in value.items()} if isinstance(value, dict) else value
        for key, value in two.state_dict().items()
    }
    three.load_state_dict(kept)
    for step in range(2, 4):
        give_gradients(second, step)
        three.step(1.0)
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
