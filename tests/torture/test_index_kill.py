"""SIGKILL at 30 instants while sample indices are built, each time with the recipe of ``preprocess index`` after it.

``make torture``. The instants are spread over the arrays (half of one is in its temporary), what makes them durable,
and what gives them their names; the stamp, written last, is among all of these.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.corpus.formats.megatron_writer import MegatronWriter
from automodel_cli.recipes.preprocess import index

pytestmark = pytest.mark.torture
FORK = multiprocessing.get_context("fork")
STRATA: dict[str, tuple[Any, str, int]] = {  # class -> what is called, and how many instants it gets
    "array": (np, "save", 10),
    "fsync": (os, "fsync", 10),
    "rename": (os, "replace", 10),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files with weights, training and validation."""
    folder, random = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    for name in "abc":
        lengths = random.integers(0, 60, 300)
        writer = MegatronWriter(folder / name, dtype=np.dtype("<u2"))
        writer.write(random.integers(0, 64, lengths.sum()).astype("<u2"), lengths)
        writer.close()
    data = {
        "_target_": "automodel_cli.data.megatron_dataset.MegatronPretraining",
        "paths": [item for name in "abc" for item in ("1", str(folder / name))],
        "seq_length": 16,
        "split": "0.8, 0.2, 0",
    }
    body = {
        "model": {"_target_": "automodel_cli.models.gpt2.build_gpt2_model", "vocab_size": 64},
        "dataset": data,
        "validation_dataset": {**data, "num_val_samples": 100},
        "step_scheduler": {"max_steps": 100, "global_batch_size": 8},
    }
    path = folder / "cfg.yaml"
    path.write_text(yaml.safe_dump(body))
    return path


def build(config: Path, cache: Path) -> list[index.Indexed]:
    folders = [f"{section}.index_mapping_dir={cache}" for section in ("dataset", "validation_dataset")]
    return index.run(load_config(PretrainConfig, config, folders))


def content(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir() if path.suffix != ".lock"}


def calls_of(stratum: str, config: Path, cache: Path) -> int:
    """How often an undisturbed build passes the point."""
    owner, name, _ = STRATA[stratum]
    calls = [0]

    def counted(original: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        original = getattr(owner, name)
        patch.setattr(owner, name, lambda *a, **k: counted(original, *a, **k))
        build(config, cache)
    return calls[0]


def die_at(stratum: str, number: int, config: Path, cache: Path) -> None:
    """Build, and get SIGKILL at the ``number``-th call."""
    owner, name, _ = STRATA[stratum]
    original, calls = getattr(owner, name), [0]

    def counted(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            if stratum == "array":
                arguments[0].write(b"half of an array")
                arguments[0].flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, name, counted)
    build(config, cache)


def test_sigkill_at_30_instants(config: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    build(config, whole)
    identical: Counter[str] = Counter()
    for stratum, (_, _, wanted) in STRATA.items():
        calls = calls_of(stratum, config, tmp_path / f"count {stratum}")
        assert calls >= wanted
        for number in np.linspace(1, calls, wanted).round().astype(int).tolist():
            cache = tmp_path / f"{stratum}{number}"
            child = FORK.Process(target=die_at, args=(stratum, number, config, cache))
            child.start()
            child.join(300)
            assert child.exitcode == -signal.SIGKILL, (stratum, number)
            build(config, cache)
            assert content(cache) == content(whole), (stratum, number)
            assert all(result.built == 0 for result in build(config, cache))
            identical[stratum] += 1
    assert identical.total() == 30
    print(
        f"\nSIGKILL during preprocess index, then the same again: {identical.total()} of 30 byte-identical, "
        "a third start builds nothing"
    )
    for stratum, count in identical.items():
        print(f"  {stratum:9s} {'#' * count} {count}")
