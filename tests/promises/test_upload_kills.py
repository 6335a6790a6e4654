"""Killed at any request, a run into object storage ends with the bytes of an undisturbed one, here or elsewhere.

Between two attempts nothing half-made is to be seen: every object under a final name is whole, and the manifest is
there only when everything is.
"""

import json
import os
import random
import sys
import time
from dataclasses import dataclass
from typing import Any

import pytest
from tests import nursery

from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig
from automodel_cli.recipes.preprocess import nanogpt

BUCKET = "kills"
WRITES = ("PUT", "POST", "DELETE")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Two shards of 10 MB: each more than a part of an upload."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("kills") / "text.jsonl"
    words = [draw.choice(["alpha", "beta", "gamma"]) for _ in range(20_000)]
    starts = [draw.randrange(18_000) for _ in range(900)]
    path.write_text("".join(json.dumps({"text": " ".join(words[k : k + 2000])}) + "\n" for k in starts))
    return path


@pytest.fixture(scope="module")
def expected(text):
    """The files of a run on a disk, by key."""
    folder = text.parent / "here"
    options = {"tokenizer": "byte", "val_fraction": 0.1, "shard_tokens": "5M", "chunk_size": 64, "num_workers": 1}
    cfg = PreprocessNanogptConfig(dataset=str(text), output_dir=str(folder), **options)
    nanogpt.run(cfg, progress=lambda event: None, say=lambda line: None)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {f"run/{name}": data for name, data in found.items() if name != ".lock"}


@dataclass
class Killer:
    """Kills a process when the server is asked to write for the ``after``-th time."""

    after: int
    process: Any = None
    seen: int = 0

    def __call__(self, request: str) -> None:
        self.seen += request.startswith(WRITES)
        if self.seen == self.after and self.process is not None:
            self.process.kill()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_killed_again_and_again(object_server, tmp_path, text, expected, elsewhere):
    url = object_server.bucket(BUCKET)
    object_server.client().upload_file(str(text), BUCKET, "in/text.jsonl")
    command = [sys.executable, "-m", "automodel_cli", "preprocess", "nanogpt", "--dataset", f"{url}/in/text.jsonl"]
    command += ["--output-dir", f"{url}/run", "--tokenizer", "byte", "--val-fraction", "0.1", "--shard-tokens", "5M"]
    command += ["--chunk-size", "64", "--num-workers", "1"]
    attempts = 0
    while True:
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / f"cache{attempts * elsewhere}")}
        object_server.watch = killer = Killer(after=4 + 6 * attempts)
        with (tmp_path / "out").open("w") as out:
            killer.process = nursery.Popen(command, stdout=out, stderr=out, env=environment, cwd=tmp_path)
            code = killer.process.wait(60)
        object_server.watch = lambda request: None
        attempts += 1
        there = object_server.objects(BUCKET)
        shown = {key: data for key, data in there.items() if key in expected}
        assert [key for key in shown if expected[key] != shown[key]] == []
        assert "run/manifest.json" not in shown or shown == expected
        if code == 0:
            break
        assert code == -9, (tmp_path / "out").read_text()
        if elsewhere and "run/.lock" in there:
            expire(object_server, there["run/.lock"])
    assert attempts > 3
    del there["in/text.jsonl"]
    assert there == expected
    assert object_server.unfinished_uploads(BUCKET) == []


def expire(server, lease):
    """As if two minutes and a half had gone by."""
    body = {**json.loads(lease), "expires": time.time() - 99}
    server.client().put_object(Bucket=BUCKET, Key="run/.lock", Body=json.dumps(body))
