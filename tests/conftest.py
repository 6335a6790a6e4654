"""A tiny corpus and a tiny training run, in this process or as the command a user types."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Before torch is imported: a worker of pytest for each core leaves no core for a second thread, and threads that wait
# for each other's core cost most of all. Tests of several threads set their number. No pool of compiling processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import numpy as np
import pytest
import yaml
from tests import nursery

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.corpus.formats.nanogpt_writer import ShardWriter
from automodel_cli.recipes.pretrain import PretrainRecipe

nursery.collect_young_only()

# A shell starts background jobs with SIGINT ignored, nohup with SIGHUP; launchers and runs honour that, so that tests
# which send these signals would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Not in the user's cache of compiled code; commands that tests start inherit it.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), f"automodel-tests-{os.getuid()}")))

LONGEST_FIRST = (
    "promises/test_same_numbers", "promises/test_launch", "promises/test_crafted_files", "recipes/test_pretrain.py",
    "promises/test_elastic", "launch/test_agent", "models/layers", "models/test_hf", "checkpoint/test_sharded",
    "promises", "recipes/preprocess", "models", "train/test_step", "recipes", "metrics", "laws", "test_device", "cli",
    "checkpoint", "docs",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that the workers of a run end together."""
    below = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(below).as_posix()
        return next((n for n, long in enumerate(LONGEST_FIRST) if name.startswith(long)), len(LONGEST_FIRST))

    items.sort(key=place)


KILL_AT = Path(__file__).parent / "promises" / "kill_at.py"


def write_tokens(path: Path, *, tokens: int, seed: int, vocab_size: int = 64) -> None:
    """A learnable stream: each token is the last one plus 0, 1 or 2."""
    steps = np.random.default_rng(seed).integers(0, 3, tokens)
    writer = ShardWriter(path, dtype=np.dtype("uint16"))
    writer.write((np.cumsum(steps) % vocab_size).astype("<u2"), np.arange(0, tokens, 50))
    writer.close()


@dataclass
class TinyTraining:
    """One run folder with its configuration; ``train`` is the command a user types."""

    folder: Path
    data: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def config(self, **sections) -> Path:
        model = {"vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
        dataset = {"_target_": "automodel_cli.data.nanogpt_dataset.NanogptDataset", "seq_len": 32}
        config = {
            "model": {"_target_": "automodel_cli.models.gpt2.build_gpt2_model", "dropout": 0.1, **model},
            "dataset": {**dataset, "file_pattern": str(self.data / "train.bin"), "shuffle_files": True},
            "validation_dataset": {**dataset, "file_pattern": str(self.data / "val.bin")},
            "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.01},
            "lr_scheduler": {"lr_decay_style": "cosine", "lr_warmup_steps": 2},
            "step_scheduler": {
                "global_batch_size": 8,
                "local_batch_size": 4,
                "max_steps": 12,
                "ckpt_every_steps": 4,
                "val_every_steps": 6,
                **sections.pop("step_scheduler", {}),
            },
            "checkpoint": {"checkpoint_dir": str(self.run), **sections.pop("checkpoint", {})},
            **sections,
        }
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def train(
        self,
        *arguments: str,
        kill: tuple[str, int] | None = None,
        config: Path | None = None,
        real: bool = False,
        **sections,
    ):
        """Run the command; with ``kill`` the process gets SIGKILL at the n-th call of that point.

        ``real``: in a new Python, not in a child of the nursery.
        """
        config = config or self.config(**sections)
        words = ["pretrain", "llm", "-c", str(config), *arguments]
        front = ["-m", "automodel_cli"] if kill is None else [str(KILL_AT), kill[0], str(kill[1])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "COLUMNS": "200"}
        command = [sys.executable, *front, *words]
        return (subprocess if real else nursery).run(
            command, capture_output=True, text=True, env=environment, timeout=300
        )

    def recipe(self, *overrides: str, fresh: bool = False, trust: tuple[str, ...] = (), profile=None, **sections):
        """The recipe object in this process, set up; what it says is in ``.said``."""
        cfg = load_config(PretrainConfig, self.config(**sections), list(overrides), trust=trust)
        said: list[str] = []
        tables: list[list[tuple[str, ...]]] = []
        reporter = Reporter(
            say=said.append,
            table=lambda title, rows: said.extend(f"{a}: {b}" for a, b in rows),
            columns=lambda title, headings, rows: tables.append([tuple(row) for row in (headings, *rows)]),
        )
        recipe = PretrainRecipe(cfg, fresh=fresh, trust=trust, profile=profile, reporter=reporter)
        recipe.said, recipe.tables = said, tables
        recipe.setup()
        return recipe

    def records(self, kind: str = "train") -> list[dict]:
        lines = (self.run / "metrics.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["kind"] == kind]

    def losses(self) -> dict[int, float]:
        records = self.records()
        assert len({record["step"] for record in records}) == len(records), "a step was logged twice"
        return {record["step"]: record["loss"] for record in records}

    def weights(self, step: int) -> bytes:
        (path,) = (self.run / f"step_{step:08d}" / "model").glob("*.safetensors")
        return path.read_bytes()


@pytest.fixture(scope="session")
def tiny_tokens(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    write_tokens(folder / "train.bin", tokens=20_000, seed=0)
    write_tokens(folder / "val.bin", tokens=2_000, seed=1)
    return folder


@pytest.fixture
def one_thread():
    """One thread for torch: sums are added in one order, and a forked child meets no thread pool of its parent."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_training(tmp_path, tiny_tokens) -> TinyTraining:
    return TinyTraining(tmp_path, tiny_tokens)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, tiny_tokens) -> TinyTraining:
    """The run that all interrupted ones must equal."""
    run = TinyTraining(tmp_path_factory.mktemp("undisturbed"), tiny_tokens)
    done = run.train()
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """A command that runs as one of several ranks silences this process' warnings for good."""
    before = logging.root.manager.disable
    yield
    logging.disable(before)


@pytest.fixture(scope="session")
def _object_servers():
    """Servers by scheme, each started once, when a test first needs it."""
    servers = {}
    yield servers
    for server in servers.values():
        server.stop()


def _object_server(scheme, servers, monkeypatch):
    """A server on loopback without faults, and the environment that leads to it."""
    if scheme not in servers:  # takes two seconds, which other tests do not pay
        from tests import azure_server, google_server, object_server

        kinds = {"s3": object_server.ObjectServer, "gs": google_server.GoogleServer, "az": azure_server.AzureServer}
        servers[scheme] = kinds[scheme]()
    from tests.object_server import Faults

    from automodel_cli.storage import opening

    server = servers[scheme]
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "STORAGE_EMULATOR"))]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    opening._open.cache_clear()
    server.faults = Faults()
    yield server
    server.faults, server.watch = Faults(), lambda request: None
    opening._open.cache_clear()


@pytest.fixture
def object_server(_object_servers, monkeypatch):
    """A real S3 server (moto's) on loopback without faults, and the environment that leads to it."""
    yield from _object_server("s3", _object_servers, monkeypatch)


@pytest.fixture(params=["gs", "az"])
def other_object_server(request, _object_servers, monkeypatch):
    """A stand-in for Google Cloud Storage and one for Azure, as ``object_server``."""
    yield from _object_server(request.param, _object_servers, monkeypatch)
