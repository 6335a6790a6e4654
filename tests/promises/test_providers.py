"""Google's and Azure's storage: text from there, the bytes of a local run to there, training and checkpoints.

In process, against the stand-ins of ``tests.google_server`` and ``tests.azure_server``.
"""

from __future__ import annotations

import json
import random
import time

import numpy as np
import pytest
from tests.checkpoint.steps import make_step
from tests.object_server import Faults

from automodel_cli.checkpoint import from_mirror, layout
from automodel_cli.checkpoint.mirror import Mirror
from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig
from automodel_cli.corpus.build.check_objects import check_objects
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.data.token_loader import TokenLoader
from automodel_cli.errors import AutomodelError
from automodel_cli.recipes.preprocess import nanogpt
from automodel_cli.storage.cache.settings import CacheSettings, use_cache
from automodel_cli.storage.opening import open_store
from automodel_cli.storage.store import Store


@pytest.fixture
def url(other_object_server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    use_cache(CacheSettings(tmp_path / "chunks", chunk_bytes=64 << 10))
    return other_object_server.bucket("lake")


@pytest.fixture
def text(tmp_path):
    draw = random.Random(0)
    rows = [{"text": " ".join(draw.choice(["alpha", "beta", "żółw"]) for _ in range(50))} for _ in range(1000)]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def make(place, dataset, progress=lambda event: None):
    cfg = PreprocessNanogptConfig(dataset=str(dataset), output_dir=str(place), tokenizer="byte", num_workers=1,
                                  val_fraction=0.1, shard_tokens=60_000, chunk_size=4)  # fmt: skip
    return nanogpt.run(cfg, progress=progress, say=lambda line: None)


def test_from_text_to_batches(url, other_object_server, tmp_path, text):
    store: Store = open_store(url)
    store.upload(f"{url}/in/text.jsonl", text)
    make(tmp_path / "here", text)
    other_object_server.faults = Faults(errors=0.03, lost=0.03, cuts=0.03, most=15, seed=2)
    make(f"{url}/tokens", f"{url}/in/*.jsonl")
    other_object_server.faults = Faults()
    assert make(f"{url}/tokens", f"{url}/in/*.jsonl").already_complete
    here = {f"tokens/{path.relative_to(tmp_path / 'here').as_posix()}": path.read_bytes()
            for path in (tmp_path / "here").rglob("*") if path.is_file() and path.name != ".lock"}  # fmt: skip
    there = {name: data for name, data in other_object_server.objects("lake").items() if name.startswith("tokens/")}
    described = [json.loads(files.pop("tokens/manifest.json")) for files in (here, there)]
    assert there == here and len(here) > 8
    assert described[0]["files"] == described[1]["files"]
    assert not check_objects(f"{url}/tokens", lambda *_: None).problems
    local, remote = (NanogptDataset(str(place), 64) for place in (tmp_path / "here", f"{url}/tokens"))
    loaders = [TokenLoader(data, global_batch_size=8, local_batch_size=8) for data in (local, remote)]
    for updates in zip(*loaders, strict=True):
        np.testing.assert_array_equal(*(update[0].input_ids.numpy() for update in updates))


def test_killed_and_continued_elsewhere(url, other_object_server, tmp_path, text):
    """An error in the middle, then a machine without the local folder; the lease was given back."""

    def stop(event):
        if any(
            "dataset_00001.bin" in request and request.startswith("PUT") for request in other_object_server.requests
        ):
            raise AutomodelError("stopped")
        time.sleep(0.005)

    with pytest.raises(AutomodelError, match="stopped"):
        make(f"{url}/tokens", text, progress=stop)
    assert "tokens/manifest.json" not in other_object_server.objects("lake")
    (tmp_path / "cache").rename(tmp_path / "lost")
    assert make(f"{url}/tokens", text).continued
    make(tmp_path / "here", text)
    there = other_object_server.objects("lake")
    for path in (tmp_path / "here").glob("*.bin"):
        assert there[f"tokens/{path.name}"] == path.read_bytes()
    assert not [name for name in there if name.startswith("tokens/.")]


def test_a_mirror_of_checkpoints(url, tmp_path):
    run, said = tmp_path / "run", []
    run.mkdir()
    mirror = Mirror(run, f"{url}/runs/a", keep_last=1, keep_every=None, say=said.append)
    for step in (10, 20):
        folder = make_step(run, step)
        (run / "metrics.jsonl").write_text(f'{{"kind": "train", "step": {step}}}\n')
        layout.write_pointer(run, "LATEST", folder.name)
        mirror.add(folder)
        waiting = mirror.finish(lambda: False)
        while next(waiting):
            time.sleep(0.005)
    (again := tmp_path / "again").mkdir()
    assert from_mirror.restore(again, f"{url}/runs/a", say=said.append) == again / "step_00000020"
    assert not (again / "step_00000010").exists()
    for path in (again / "step_00000020").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (run / path.relative_to(again)).read_bytes()
