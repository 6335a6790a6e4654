"""The launcher's recipe: how many processes, what each executes, what is refused before any starts."""

import os
import sys
from pathlib import Path

import pytest

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.errors import ConfigError
from automodel_cli.recipes import launch

YAML = """\
model: {_target_: automodel_cli.models.gpt2.build_gpt2_model, n_layer: 1}
dataset: {_target_: automodel_cli.data.nanogpt_dataset.NanogptDataset, file_pattern: x.bin, seq_len: 8}
step_scheduler: {global_batch_size: 192, local_batch_size: 1}
"""


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """What torch's agent was asked to run, instead of running it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(launch.THREADS_VARIABLE, raising=False)
    Path("cfg.yaml").write_text(YAML)
    calls = []

    def record(plan, command, *, log_folder, say, signals):
        assert log_folder.is_dir() or plan.log_dir is not None
        calls.append((plan, command, log_folder, signals))
        return 75

    monkeypatch.setattr(launch, "launch", record)
    return calls


def run(**flags) -> int | None:
    cfg = load_config(PretrainConfig, "cfg.yaml", flags.pop("overrides", []))
    flags = {key.replace("_", "-"): str(value) for key, value in flags.items()}
    try:
        return launch.run(cfg, flags, ["pretrain", "llm", "-c", "cfg.yaml"], reporter=Reporter())
    finally:
        os.environ.pop(launch.THREADS_VARIABLE, None)


def test_what_is_launched(launched):
    assert run(nproc_per_node=3, max_restarts=1) == 75
    ((plan, command, folder, signals),) = launched
    assert (plan.processes, plan.max_restarts) == (3, 1)
    assert command[0] == sys.executable
    assert command[-6:] == ["-m", "automodel_cli", "pretrain", "llm", "-c", "cfg.yaml"]
    assert signals == ("SIGTERM", "SIGINT", "SIGUSR1")
    assert not folder.exists()  # all ended well: nothing to look up


def test_a_local_batch_size_that_is_chosen_later_is_no_obstacle(launched):
    assert run(nproc_per_node=3, overrides=["step_scheduler.local_batch_size=auto"]) == 75
    with pytest.raises(ConfigError, match="192 is not a multiple of local_batch_size 1 x 5"):
        run(nproc_per_node=5, overrides=["step_scheduler.local_batch_size=auto"])


def test_logs_are_kept_where_they_were_asked_for(launched):
    run(nproc_per_node=2, log_dir="logs")
    assert launched[0][2] == Path("logs").absolute()
    run(nproc_per_node=2, log_dir="logs", nnodes=2, node_rank=1, master_addr="h")
    assert launched[1][2] == Path("logs/node_1").absolute()


def test_threads_are_shared_out_unless_somebody_has(launched, monkeypatch):
    seen = []
    monkeypatch.setattr(launch, "cores", lambda: 16)
    monkeypatch.setattr(launch, "launch", lambda *_, **__: seen.append(os.environ[launch.THREADS_VARIABLE]) or 0)
    run(nproc_per_node=3)
    run(nproc_per_node=64)
    monkeypatch.setenv(launch.THREADS_VARIABLE, "7")
    run(nproc_per_node=3)
    assert seen == ["5", "1", "7"]


@pytest.mark.parametrize(
    ("word", "gpus", "processes"), [("3", 8, 3), ("gpu", 8, 8), ("auto", 8, 8), ("auto", 0, 6), ("cpu", 8, 6)]
)
def test_how_many_processes(word, gpus, processes, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr(launch, "cores", lambda: 6)
    assert launch.local_processes(word) == processes


def test_gpus_that_are_not_here(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match="there is no GPU here"):
        launch.local_processes("gpu")


def test_one_process_is_the_callers(launched, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert run(nproc_per_node="gpu") is None
    assert run(nproc_per_node=1, nnodes=1) is None
    assert launched == []
    assert run(nproc_per_node=1, nnodes=2, rdzv_endpoint="h:1") == 75


def test_a_mesh_that_does_not_fit_is_refused_once_and_here(launched):
    with pytest.raises(ConfigError, match="tp_size 2"):
        run(nproc_per_node=3, overrides=["distributed.tp_size=2"])
    with pytest.raises(ConfigError, match="12 processes"):
        run(nproc_per_node=3, nnodes=4, rdzv_endpoint="h:1", overrides=["distributed.dp_size=3"])
    assert launched == []
    assert run(nproc_per_node=3, nnodes="1:4", rdzv_endpoint="h:1", overrides=["distributed.tp_size=2"]) == 75


def test_the_current_folder_is_importable_only_where_it_was(monkeypatch):
    monkeypatch.setattr(sys, "path", ["/venv/bin", "/lib"])
    assert "-P" in launch.worker_command([])
    monkeypatch.setattr(sys, "path", ["", "/lib"])
    assert "-P" not in launch.worker_command([])


def test_a_batch_that_the_ranks_cannot_share_is_refused_before_any_starts(launched):
    with pytest.raises(ConfigError, match="5 data-parallel ranks"):
        run(nproc_per_node=5)
    assert not launched
