"""Numbers of updates on their way: in order, as late as asked, all of them in the end."""

import pytest
import torch

from automodel_cli.train.deferred_metrics import DeferredMetrics
from automodel_cli.train.step import StepMetrics


def result(loss, tokens=10, skipped=False):
    return StepMetrics(
        loss=torch.tensor(loss),
        num_label_tokens=torch.tensor(tokens),
        grad_norm=torch.tensor(0.5),
        skipped=torch.tensor(skipped),
    )


def test_a_cpu_reports_at_once():
    results = DeferredMetrics(torch.device("cpu"))
    results.add("first", result(2.0, tokens=1_000_003, skipped=True))
    ((context, numbers),) = results.arrived()
    assert context == "first"
    assert numbers == StepMetrics(loss=2.0, num_label_tokens=1_000_003, grad_norm=0.5, skipped=True)
    assert list(results.all()) == []


@pytest.mark.parametrize("behind", [0, 1, 2])
def test_a_reader_stays_behind(behind):
    results = DeferredMetrics(torch.device("cpu"))
    results.behind = behind
    seen = []
    for step in range(5):
        results.add(step, result(float(step)))
        seen += results.arrived()
    assert [step for step, _ in seen] == list(range(5 - behind))
    seen += results.all()
    assert [(step, numbers.loss) for step, numbers in seen] == [(step, float(step)) for step in range(5)]


def test_no_label_is_no_loss():
    results = DeferredMetrics(torch.device("cpu"))
    results.add(None, result(0.0, tokens=0))
    ((_, numbers),) = results.all()
    assert (numbers.loss, numbers.num_label_tokens) == (0.0, 0)
