"""The picture of a run and its branches."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from automodel_cli.errors import ConfigError, DataError
from automodel_cli.metrics.plot_tree import RunOfTree, plot_tree
from automodel_cli.metrics.read import RunMetrics


def metrics(tmp_path, name, steps, *, validated=True) -> RunMetrics:
    columns = {"step": np.array(steps), "loss": 4.0 - 0.1 * np.array(steps), "lr": np.full(len(steps), 0.1)}
    return RunMetrics(name, tmp_path / name, columns, {"default": columns} if validated else {})


def tree(tmp_path, *, validated=True) -> RunOfTree:
    inner = RunOfTree("inner", metrics(tmp_path, "inner", [5, 6], validated=validated), 4)
    outer = RunOfTree("outer", metrics(tmp_path, "outer", [6, 8], validated=validated), 4, (inner,))
    return RunOfTree("trunk", metrics(tmp_path, "trunk", [1, 2, 3, 4, 5], validated=validated), None, (outer,))


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures, save = [], Figure.savefig

    def savefig(self, *arguments, **keywords):
        figures.append(self)
        return save(self, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


@pytest.mark.parametrize("validated", [True, False])
def test_a_branch_begins_where_it_leaves_what_it_comes_from(tmp_path, drawn, validated):
    """``inner`` leaves ``outer`` at a step that only the trunk has logged."""
    out = plot_tree([tree(tmp_path, validated=validated)], tmp_path / "tree.svg")
    loss, rate = drawn[0].axes
    curves = {line.get_label().split()[0]: line for line in loss.lines if not line.get_label().startswith("_")}
    assert {name: line.get_xdata().tolist() for name, line in curves.items()} == {
        "trunk": [1, 2, 3, 4, 5], "outer": [4, 6, 8], "inner": [4, 5, 6],
    }  # fmt: skip
    assert curves["inner"].get_ydata()[0] == pytest.approx(3.6)
    assert len({line.get_color() for line in curves.values()}) == 3
    assert [line.get_xdata().tolist() for line in rate.lines if len(line.get_xdata()) > 1] == [
        [1, 2, 3, 4, 5], [4, 6, 8], [4, 5, 6]
    ]  # fmt: skip
    assert out.read_bytes().startswith(b"<?xml")


def test_a_trunk_that_is_gone_and_nothing_at_all(tmp_path, drawn):
    plot_tree([RunOfTree("trunk", None, None, tree(tmp_path).branches)], tmp_path / "tree.png")
    curves = [line.get_xdata().tolist() for line in drawn[0].axes[0].lines if len(line.get_xdata()) > 1]
    assert curves == [[6, 8], [5, 6]]  # where they began nobody knows
    with pytest.raises(DataError, match="nothing to draw"):
        plot_tree([RunOfTree("trunk", None)], tmp_path / "none.png")
    with pytest.raises(ConfigError, match="cannot draw"):
        plot_tree([tree(tmp_path)], tmp_path / "tree.txt")
    assert not (tmp_path / "none.png").exists()
