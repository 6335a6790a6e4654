"""One process: against torch's Muon and AdamW, against the formulas written out, and what must hold of any update."""

import copy

import pytest
import torch

from automodel_cli.errors import ConfigError
from automodel_cli.models.interface import MatrixLayout
from automodel_cli.train.muon import optimizer as optimizer_module
from automodel_cli.train.muon.optimizer import MuonAdamW
from automodel_cli.train.muon.orthogonal import orthogonalize


def weights(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def run(optimizer, parameters, steps, first=0):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(1000 + step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("ours", "theirs"), [("keller", "original"), ("rms_norm", "match_rms_adamw")])
def test_configured_alike_it_is_torch_s_muon(nesterov, ours, theirs):
    """Within the noise of bfloat16: turned, the sums of a matrix product come in another order."""
    shapes = [(64, 32), (32, 64), (48, 48), (32, 64)]
    mine, reference, start = weights(*shapes), weights(*shapes), weights(*shapes)
    common = {"lr": 0.02, "weight_decay": 0.1, "nesterov": nesterov, "momentum": 0.9}
    run(MuonAdamW(mine, method="newton_schulz", adjust_lr=ours, **common), mine, 4)
    run(torch.optim.Muon(reference, adjust_lr_fn=theirs, **common), reference, 4)
    for own, expected, begin in zip(mine, reference, start, strict=True):
        assert (own - expected).norm() / (expected - begin).norm() < 0.02


@pytest.mark.parametrize("fused", [True, False])
def test_the_other_groups_are_torch_s_adamw(fused):
    shapes = [(7, 3), (5,), ()]
    mine, reference = weights(*shapes), weights(*shapes)
    common = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "fused": fused}
    found = run(MuonAdamW([{"params": mine, "rule": "adamw", **common}]), mine, 4)
    expected = run(torch.optim.AdamW(reference, **common), reference, 4)
    assert all(map(torch.equal, found, expected))


EXACT = {"dtype": "float32", "lr": 0.1, "weight_decay": 0.2}


@pytest.mark.parametrize("settings", [{}, {"beta2": 0.95}, {"cautious": True}])
def test_stacked_or_one_by_one_is_the_same(settings):
    shapes = [(12, 8), (8, 12), (12, 8), (8, 8), (8, 8)]
    together, apart = weights(*shapes), weights(*shapes)
    found = run(MuonAdamW(together, **EXACT, **settings), together, 3)
    optimizers = [MuonAdamW([one], **EXACT, **settings) for one in apart]

    class OneByOne:
        def step(self):
            for optimizer in optimizers:
                optimizer.step()

    torch.testing.assert_close(found, run(OneByOne(), apart, 3))


@pytest.mark.parametrize("at_once", [1, 96, 200])
def test_large_stacks_are_worked_on_in_parts(monkeypatch, at_once):
    """So many elements at a time, or one matrix: as many as fit give the same."""
    shapes, settings = [(12, 8), (8, 12), (12, 8), (8, 8)], {**EXACT, "beta2": 0.95, "cautious": True}
    whole, parts = weights(*shapes), weights(*shapes)
    expected = run(MuonAdamW(whole, **settings), whole, 3)
    monkeypatch.setattr(optimizer_module, "_AT_ONCE", at_once)
    torch.testing.assert_close(run(MuonAdamW(parts, **settings), parts, 3), expected)


def test_fused_projections_are_made_orthogonal_apart():
    """As three weights would be, in the order of transformers' Conv1D too."""
    parts = weights((8, 6), (8, 6), (8, 6))
    fused = torch.nn.Parameter(torch.cat([part.detach() for part in parts]))
    conv = torch.nn.Parameter(fused.detach().t().clone())
    layouts = {fused: MatrixLayout(sizes=(8, 8, 8)), conv: MatrixLayout(sizes=(8, 8, 8), transposed=True)}
    gradients = [torch.randn(8, 6, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    for part, gradient in zip(parts, gradients, strict=True):
        part.grad = gradient
    fused.grad, conv.grad = torch.cat(gradients), torch.cat(gradients).t().contiguous()
    for group, layout in (([*parts], {}), ([fused], layouts), ([conv], layouts)):
        MuonAdamW(group, layouts=layout, beta2=0.9, **EXACT).step()
    torch.testing.assert_close(fused.detach(), torch.cat([part.detach() for part in parts]))
    torch.testing.assert_close(conv.detach().t(), fused.detach())


def test_normuon_written_out():
    (weight,) = weights((12, 5))
    begin = weight.detach().clone()
    optimizer = MuonAdamW([weight], lr=0.1, dtype="float32", beta2=0.9, nesterov=False, momentum=0.5)
    average, momentum = torch.zeros(12), torch.zeros(12, 5)
    for step in range(3):
        weight.grad = torch.randn(12, 5, generator=torch.Generator().manual_seed(step))
        momentum = 0.5 * momentum + 0.5 * weight.grad
        optimizer.step()
        update = orthogonalize(momentum[None])[0]
        average = 0.9 * average + 0.1 * update.square().mean(dim=1)
        evened = update / average.sqrt()[:, None]
        begin -= 0.1 * (12 / 5) ** 0.5 * evened * update.norm() / evened.norm()
        torch.testing.assert_close(weight.detach(), begin)


def test_cautious_decay_spares_what_the_update_drives_away_from_zero():
    (weight,), (plain,) = weights((6, 4)), weights((6, 4))
    begin = weight.detach().clone()
    weight.grad = plain.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    MuonAdamW([plain], lr=0.1, dtype="float32").step()
    MuonAdamW([weight], lr=0.1, dtype="float32", weight_decay=0.5, cautious=True).step()
    step = begin - plain.detach()
    decayed = (step * begin >= 0).float() * 0.05 * begin
    torch.testing.assert_close(weight.detach(), plain.detach() - decayed)
    assert 0 < (decayed != 0).sum() < decayed.numel()


def test_momentum_rises_to_its_value():
    (weight,) = weights((4, 4))
    optimizer = MuonAdamW([weight], momentum=0.9, momentum_start=0.5, momentum_warmup=2)
    buffer = torch.zeros(4, 4)
    for step, mu in enumerate((0.5, 0.7, 0.9, 0.9)):
        weight.grad = torch.full((4, 4), float(step))
        optimizer.step()
        buffer = mu * buffer + (1 - mu) * weight.grad
        torch.testing.assert_close(optimizer.state[weight]["momentum_buffer"], buffer)


@pytest.mark.parametrize("beta2", [None, 0.95])
def test_a_zero_gradient_does_no_harm_and_none_leaves_a_weight_alone(beta2):
    still, free = weights((6, 4), (6, 4))
    begin = still.detach().clone(), free.detach().clone()
    still.grad = torch.zeros(6, 4)
    MuonAdamW([still, free], lr=0.1, weight_decay=0.5, beta2=beta2).step()
    torch.testing.assert_close(still.detach(), begin[0] * 0.95)
    assert torch.equal(free.detach(), begin[1])


def test_state_is_there_before_the_first_update_and_a_resume_is_exact():
    shapes = [(12, 8), (8, 8), (5,)]

    def optimizer_of(parameters):
        matrices = {"params": parameters[:2], "beta2": 0.95, "momentum_start": 0.8, "momentum_warmup": 4}
        return MuonAdamW([matrices, {"params": parameters[2:], "rule": "adamw"}], lr=0.05)

    whole, first = weights(*shapes), weights(*shapes)
    expected = run(optimizer_of(whole), whole, 6)
    stopped = optimizer_of(first)
    fresh_keys = {key for state in stopped.state.values() for key in state}
    run(stopped, first, 3)
    assert {key for state in stopped.state.values() for key in state} == fresh_keys
    second = [torch.nn.Parameter(parameter.detach().clone()) for parameter in first]
    resumed = optimizer_of(second)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    assert all(map(torch.equal, run(resumed, second, 3, first=3), expected))


@pytest.mark.parametrize(
    "settings",
    [{"rule": "sgd"}, {"method": "svd"}, {"adjust_lr": "none"}, {"dtype": "float16"}, {"momentum": 1.0},
     {"beta2": 1.0}, {"betas": (0.9, 1.0)}, {"lr": -1.0}, {"steps": -1}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ConfigError):
        MuonAdamW(weights((4, 4)), **settings)


def test_a_vector_has_no_place_in_muon():
    with pytest.raises(ConfigError, match="no matrix"):
        MuonAdamW(weights((4,)))
