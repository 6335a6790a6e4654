"""The profiler on a CUDA device: host and GPU time of real updates, each on its own clock."""

import gzip
import json

import pytest
import torch

from automodel_cli.batch import Batch
from automodel_cli.metrics.profile import StepProfiler
from automodel_cli.metrics.trace import PHASES, REST, gpu_times
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.train.losses import ChunkedCrossEntropy
from automodel_cli.train.optimizers import build_adamw
from automodel_cli.train.step import train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
VOCAB, TOKENS, UPDATES = 1000, 128, 5


def train(profiler: StepProfiler, *, compiled: bool, steps: int = 12) -> None:
    model = build_gpt2_model(vocab_size=VOCAB, n_positions=TOKENS, n_embd=128, n_layer=2, n_head=2, is_meta_device=True)
    model.materialize("cuda", seed=0)
    if compiled:
        model.compile(dynamic=False)
    optimizer = build_adamw(model.parameters(), lr=1e-3, device="cuda")
    ids = torch.randint(0, VOCAB, (8, TOKENS + 1), generator=torch.Generator().manual_seed(0))
    rows = [Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())] * 2
    with profiler:
        for step in range(1, steps + 1):
            with profiler.phase("copy to device"):
                here = [one.to("cuda") for one in rows]
            result = train_step(
                model,
                ChunkedCrossEntropy(),
                optimizer,
                here,
                autocast_dtype=torch.bfloat16,
                phase=profiler.phase,
            )
            if step % 5 == 0:
                with profiler.phase("logging"):
                    result.loss.item()
            profiler.step(step)


@pytest.mark.parametrize("compiled", [False, True])
def test_gpu_time_of_phases(compiled, tmp_path):
    lines, tables = [], []
    profiler = StepProfiler(
        UPDATES,
        folder=tmp_path,
        device="cuda",
        say=lines.append,
        columns=lambda title, headings, rows: tables.append((title, headings, rows)),
    )
    train(profiler, compiled=compiled)
    (path,) = tmp_path.iterdir()
    assert path.name == "step_00000009_rank0.json.gz"
    times = gpu_times(json.loads(gzip.decompress(path.read_bytes()))["traceEvents"])
    for name in ("forward", "backward", "gradient norm, clip", "optimizer"):
        assert times.by_phase_ms.get(name, 0) > 0, times.by_phase_ms
    assert times.by_phase_ms["backward"] > times.by_phase_ms["forward"]  # autograd's thread is not lost
    whole = sum(times.by_phase_ms.values())
    assert times.by_phase_ms.get(REST, 0) < whole / 4
    assert 0 < times.busy_ms <= whole * 1.001
    title, headings, rows = tables[0]
    assert title == "profile of 5 updates, 5 to 9; time of the host"
    assert headings[-1] == "GPU ms"
    assert [row[0] for row in rows] == [*PHASES, REST, "an update"]
    wall_ms = float(rows[-1][2])
    assert times.busy_ms / UPDATES <= wall_ms + 0.1  # the window is closed by waiting for the device at both ends
    assert any(line.startswith("GPU busy ") for line in lines)
    assert tables[1][0] == "most expensive kernels" and tables[1][2]
