"""Singular values after a few steps, against the decomposition they stand in for."""

import pytest
import torch

from automodel_cli.train.muon.orthogonal import METHODS, orthogonalize


def gaussian(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("method", "low"), [("newton_schulz", 0.66), ("polar_express", 0.84)])
@pytest.mark.parametrize("shape", [(3, 64, 256), (3, 256, 64)])
def test_singular_values_of_oblong_matrices_are_near_one(method, low, shape, dtype):
    values = torch.linalg.svdvals(orthogonalize(gaussian(*shape).to(dtype), method=method).float())
    assert values.min() > low
    assert values.max() < 1.2


@pytest.mark.parametrize("method", METHODS)
def test_square_matrices_are_bounded_above(method):
    assert torch.linalg.svdvals(orthogonalize(gaussian(4, 48, 48), method=method)).max() < 1.2


def test_many_steps_reach_the_polar_factor():
    stack = gaussian(2, 16, 40)
    left, _, right = torch.linalg.svd(stack, full_matrices=False)
    found = orthogonalize(stack, steps=12)
    assert (found - left @ right).norm() / (left @ right).norm() < 0.1


@pytest.mark.parametrize("method", METHODS)
def test_size_does_not_matter_and_zeros_stay_zeros(method):
    stack = gaussian(2, 8, 12)
    torch.testing.assert_close(orthogonalize(1e4 * stack, method=method), orthogonalize(stack, method=method))
    assert not orthogonalize(torch.zeros(2, 8, 12), method=method).any()


def test_each_matrix_of_a_stack_is_by_itself():
    stack = gaussian(3, 8, 12)
    alone = torch.cat([orthogonalize(one[None]) for one in stack])
    torch.testing.assert_close(orthogonalize(stack), alone)


def test_an_upright_matrix_is_its_transpose_s():
    stack = gaussian(2, 30, 10)
    torch.testing.assert_close(orthogonalize(stack), orthogonalize(stack.mT).mT)
