"""Figures: written in each format, the same bytes for the same numbers, errors that say what to do."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys

import numpy as np
import pytest

from automodel_cli.errors import ConfigError, DataError
from automodel_cli.metrics import plot
from automodel_cli.metrics.log import MetricsLog
from automodel_cli.metrics.log_file import METRICS_NAME
from automodel_cli.metrics.read import read_runs

matplotlib = pytest.importorskip("matplotlib", reason="the plot extra is not installed")


def write_run(folder, count, *, skipped=()):
    log = MetricsLog(folder)
    for step in range(1, count + 1):
        loss = math.nan if step in skipped else 10 / step
        log.train({"step": step, "loss": loss, "lr": 1e-4, "tps": 1000.0, "grad_norm": 100.0 / step})
        if step % 5 == 0:
            log.validation({"step": step, "name": "default", "loss": 11 / step})
            log.validation({"step": step, "name": "code", "loss": 9 / step})
    log.close()
    return folder


def legend_of(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG\r\n"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_formats_and_equal_bytes(tmp_path, ending, magic):
    run = write_run(tmp_path / "run", 6)
    first = plot.plot_runs([run], tmp_path / "new" / f"a.{ending}", dpi=60).read_bytes()
    second = plot.plot_runs([run], tmp_path / f"b.{ending}", dpi=60).read_bytes()
    assert first.startswith(magic) and first == second


def test_no_window_system_is_touched(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    plot.plot_runs([write_run(tmp_path / "run", 2)], tmp_path / "a.png", dpi=40)
    assert "matplotlib.pyplot" not in sys.modules


def test_one_run_names_training_validation_and_skips(tmp_path):
    figure = plot.draw(read_runs([write_run(tmp_path / "run", 20, skipped=(7, 8))]))
    assert legend_of(figure) == [
        "train (last 0.5000)",
        "validation (last 0.5500)",
        "validation code (last 0.4500)",
        "2 skipped (not finite)",
    ]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Loss (nats per token)", "Learning rate", "Tokens per second", "Gradient norm"]
    assert figure.axes[3].get_yscale() == "linear"


def test_several_runs_have_a_color_each(tmp_path):
    runs = read_runs([write_run(tmp_path / "a", 4), write_run(tmp_path / "b", 9)])
    figure = plot.draw(runs, log_x=True, log_loss=True)
    colors = {line.get_color() for line in figure.axes[1].lines}
    assert colors == set(plot.PALETTE[:2])
    assert "a: train (last 2.5000)" in legend_of(figure)
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"


def test_a_run_with_few_columns_still_draws(tmp_path):
    log = MetricsLog(tmp_path)
    log.train({"step": 1, "loss": 2.0})
    log.close()
    figure = plot.draw(read_runs([tmp_path]))
    assert [axes.texts[0].get_text() for axes in figure.axes[1:]] == ["not recorded"] * 3


def test_wide_gradient_norms_get_a_log_axis(tmp_path):
    figure = plot.draw(read_runs([write_run(tmp_path, 60)]))
    assert figure.axes[3].get_yscale() == "log"


@pytest.mark.parametrize(("runs", "count"), [(1, 1), (3, 2), (8, 40), (1, 400), (8, 400)])
def test_numbers_are_plain_and_nothing_overlaps(tmp_path, count, runs):
    """Tick labels that are drawn, on log axes: no powers of ten, none on top of another, nor a legend on the curves."""
    names = [write_run(tmp_path / f"a_run_with_a_long_name_{number}", count) for number in range(runs)]
    figure = plot.draw(read_runs(names), log_x=True, log_loss=True)
    figure.savefig(tmp_path / "drawn.png", dpi=50)
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = [label for label in axis.get_ticklabels(which="both") if label.get_text()]
            assert all(re.fullmatch(r"[\d.]+(e-?\d+)?[kMG]?", label.get_text()) for label in labels)
            boxes = [label.get_window_extent() for label in labels]
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    inside = figure.axes[0].get_legend()
    assert (inside is None) == (len(figure.axes[0].get_legend_handles_labels()[0]) > 6)


def test_the_legend_has_the_last_value_of_the_log(tmp_path):
    """Not that of the smoothed curve."""
    run = write_run(tmp_path / "run", 400)
    last = json.loads((run / METRICS_NAME).read_text().splitlines()[-3])
    assert (last["kind"], last["step"]) == ("train", 400)
    assert legend_of(plot.draw(read_runs([run])))[0] == f"train (last {last['loss']:.4f})"


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1.9, 11, [2, 5, 10]),
        (1, 800, [1, 3, 10, 30, 100, 300]),
        (0.04, 40, [0.1, 0.3, 1, 3, 10, 30]),
        (1, 2e6, None),
    ],
)
def test_ticks_of_log_axes(low, high, ticks):
    found = plot.log_ticks(low, high, 7)
    assert len(found) <= 7 and all(low <= tick <= high for tick in found)
    assert ticks is None or found == pytest.approx(ticks)


class TestSmooth:
    def test_a_straight_line_stays_where_it_is(self):
        values = np.linspace(5, 1, 50)
        smoothed = plot.smooth(values, 10)
        np.testing.assert_allclose(smoothed[:45], values[:45])

    def test_noise_shrinks(self):
        noise = np.random.default_rng(0).normal(size=2000)
        assert plot.smooth(noise, 50)[100:].std() < 0.2

    @pytest.mark.parametrize("window", [0, 1])
    def test_off(self, window):
        values = np.array([1.0, 5.0, 2.0])
        np.testing.assert_array_equal(plot.smooth(values, window), values)


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (6e-4, "6e-4"), (2.5e-4, "2.5e-4"), (1.0, "1e0")])
def test_learning_rate_ticks(value, text):
    assert plot._short_power(value) == text


class TestErrors:
    def test_unknown_ending(self, tmp_path):
        with pytest.raises(ConfigError, match=r"ends with \.gif"):
            plot.plot_runs([tmp_path], tmp_path / "a.gif")

    def test_matplotlib_missing(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ConfigError) as caught:
            plot.plot_runs([write_run(tmp_path, 1)], tmp_path / "a.png")
        assert "pip install 'automodel-cli[plot]'" in caught.value.hint

    def test_run_missing(self, tmp_path):
        with pytest.raises(DataError, match=METRICS_NAME):
            plot.plot_runs([tmp_path / "nowhere"], tmp_path / "a.png")
        assert not (tmp_path / "a.png").exists()
