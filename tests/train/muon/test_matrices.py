"""Matrices in weights, and who has which."""

import itertools

import pytest

from automodel_cli.errors import ConfigError
from automodel_cli.models.interface import MatrixLayout
from automodel_cli.train.muon.matrices import LR_SCALES, by_shape, divide, matrices_of

ONE = MatrixLayout()


def test_fused_and_transposed_weights_are_taken_apart():
    fused, conv = MatrixLayout(sizes=(4, 2, 2)), MatrixLayout(sizes=(4, 4), transposed=True)
    found = matrices_of([(8, 6), (6, 8), (5, 3)], [fused, conv, ONE])
    assert [matrix.chunk for matrix in found] == [
        ((0, 0), (4, 6)), ((4, 0), (2, 6)), ((6, 0), (2, 6)),
        ((0, 0), (6, 4)), ((0, 4), (6, 4)),
        ((0, 0), (5, 3)),
    ]  # fmt: skip
    assert [matrix.out_in for matrix in found] == [(4, 6), (2, 6), (2, 6), (4, 6), (4, 6), (5, 3)]
    assert by_shape(found) == {(4, 6): [0, 3, 4], (2, 6): [1, 2], (3, 5): [5]}


@pytest.mark.parametrize(("shape", "layout"), [((8,), ONE), ((2, 2, 2), ONE), ((8, 6), MatrixLayout(sizes=(4, 2)))])
def test_what_is_no_matrix_is_refused(shape, layout):
    with pytest.raises(ConfigError):
        matrices_of([shape], [layout])


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 16])
def test_work_is_divided_evenly_and_some_may_have_none(ranks):
    matrices = matrices_of([(64, 64)] * 7 + [(256, 64)] * 3, [ONE] * 10)
    owners = divide(matrices, ranks)
    loads = [sum(m.cost for m, owner in zip(matrices, owners, strict=True) if owner == rank) for rank in range(ranks)]
    assert max(loads) - min(loads) <= max(matrix.cost for matrix in matrices)
    assert sum(loads) == sum(matrix.cost for matrix in matrices)


def test_scales_by_shape():
    tall, wide = (400, 100), (100, 400)
    expected = {"keller": (2.0, 1.0), "spectral_norm": (2.0, 0.5), "rms_norm": (4.0, 4.0)}
    for (name, values), shape_index in itertools.product(expected.items(), (0, 1)):
        assert LR_SCALES[name](*(tall, wide)[shape_index]) == pytest.approx(values[shape_index])
