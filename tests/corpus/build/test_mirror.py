"""Outputs in object storage: the bytes of a local run, the same answers about what is there, one writer at a time."""

import json
import random
import time
from pathlib import Path

import pytest
from tests.object_server import Faults

from automodel_cli.config.schema.megatron import PreprocessMegatronConfig
from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig, TokenizerTrainConfig
from automodel_cli.config.schema.shuffle import ShuffleConfig
from automodel_cli.corpus.build import mirror
from automodel_cli.corpus.build.check_objects import check_objects
from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.recipes.preprocess import megatron, nanogpt, shuffle, train_tokenizer
from automodel_cli.storage.lease import Lease

BUCKET = "outputs"


@pytest.fixture
def text(tmp_path):
    draw = random.Random(0)
    rows = [{"text": " ".join(draw.choice(["alpha", "beta", "żółw"]) for _ in range(50))} for _ in range(2000)]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def url(object_server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return object_server.bucket(BUCKET)


def make(place, dataset, *, say=None, progress=lambda event: None, **options):
    """``preprocess nanogpt`` of several shards."""
    settings = {"tokenizer": "byte", "num_workers": 1, "val_fraction": 0.1, "shard_tokens": 100_000, "chunk_size": 4}
    cfg = PreprocessNanogptConfig(**{**settings, "dataset": dataset, "output_dir": str(place), **options})
    return nanogpt.run(cfg, progress=progress, say=(say if say is not None else []).append)


def files(folder: Path):
    """Everything in a folder that a run is for."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if not name.endswith("lock")}


def staging(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name not in ("lock", "owner")]


@pytest.mark.parametrize(
    "options", [{}, {"format": "raw"}, {"shuffle": True}, {"tokenizer": "char"}, {"num_workers": 2}]
)
def test_nanogpt(url, object_server, tmp_path, text, options):
    made = make(tmp_path / "here", text, **options)
    there = make(f"{url}/run", text, **options)
    assert there.folder == f"{url}/run" and there.manifest.body() == made.manifest.body()
    expected = {f"run/{name}": data for name, data in files(tmp_path / "here").items()}
    assert object_server.objects(BUCKET) == expected and len(expected) > 8
    assert staging(tmp_path) == [] and object_server.unfinished_uploads(BUCKET) == []


@pytest.mark.parametrize("options", [{}, {"shard_tokens": 100_000}, {"shards": 3}, {"shuffle": True}])
def test_megatron_in_a_folder_that_others_use(url, object_server, tmp_path, text, options):
    object_server.client().put_object(Bucket=BUCKET, Key="run/other_0_text_document.bin", Body=b"somebody's")

    def run(prefix):
        settings = {"tokenizer": "byte", "num_workers": 1, "append_eod": True, "chunk_size": 4, **options}
        cfg = PreprocessMegatronConfig(**{**settings, "input": [text], "output_prefix": prefix})
        return megatron.run(cfg, progress=lambda event: None, say=lambda line: None)

    run(f"{tmp_path}/here/x")
    run(f"{url}/run/x")
    expected = {f"run/{name}": data for name, data in files(tmp_path / "here").items()}
    assert object_server.objects(BUCKET) == {**expected, "run/other_0_text_document.bin": b"somebody's"}


def test_shuffle_and_what_reads_it(url, object_server, tmp_path, text):
    def run(dataset, folder):
        cfg = ShuffleConfig(dataset=dataset, output_dir=folder, chunks=3, val_documents=100, name="x")
        return shuffle.run(cfg, progress=lambda event: None, say=lambda line: None)

    object_server.client().upload_file(text, BUCKET, "in/text.jsonl")
    run(text, f"{tmp_path}/here")
    run(f"{url}/in/text.jsonl", f"{url}/run")
    there = object_server.objects(BUCKET)
    assert {name[4:]: data for name, data in there.items() if name.startswith("run/")} == files(tmp_path / "here")
    for split in ("train", "val"):
        make(tmp_path / split, f"{tmp_path}/here", split=split, val_fraction=None)
        made = make(f"{url}/{split}", f"{url}/run", split=split, val_fraction=None)
        assert (
            made.manifest.tokens
            and files(tmp_path / split)["dataset.bin"] == object_server.objects(BUCKET)[f"{split}/dataset.bin"]
        )
    with pytest.raises(DataError, match="mixes training and validation"):
        make(f"{url}/all", f"{url}/run/*.jsonl")
    with pytest.raises(ConfigError, match="lies in the output folder"):
        run(f"{url}/in/text.jsonl", f"{url}/in")
    with pytest.raises(ConfigError, match="lies in the input folder"):
        run(f"{url}/in", f"{url}/in/shuffled")


def test_what_is_there_is_left_refused_or_replaced(url, object_server, tmp_path, text):
    make(f"{url}/run", text)
    before = object_server.objects(BUCKET)
    said = []
    assert make(f"{url}/run", text, say=said).already_complete
    assert f"{url}/run/manifest.json is already there: nothing to do" in said
    with pytest.raises(ConfigError, match=r"s3://outputs/run holds a corpus made in another way: seed 42 -> 7"):
        make(f"{url}/run", text, seed=7)
    assert object_server.objects(BUCKET) == before
    make(f"{url}/run", text, shard_tokens=300_000, overwrite=True)
    make(tmp_path / "here", text, shard_tokens=300_000)
    assert object_server.objects(BUCKET) == {f"run/{name}": data for name, data in files(tmp_path / "here").items()}
    object_server.client().delete_object(Bucket=BUCKET, Key="run/val.bin")
    with pytest.raises(DataError, match=r"s3://outputs/run/val.bin is missing or has another size"):
        make(f"{url}/run", text, shard_tokens=300_000)


def test_a_place_is_one_place_however_it_is_spelled(url, object_server, text):
    make(f"{url}/run", text)
    before, other = object_server.objects(BUCKET), f"{url}//run/".replace("s3", "S3", 1)
    said = []
    make(other, text, say=said)
    assert any("nothing to do" in line for line in said), said
    assert object_server.objects(BUCKET) == before
    assert check_objects(other, lambda *_: None).files == check_objects(f"{url}/run", lambda *_: None).files


def test_what_others_made_stays(url, object_server, text):
    for key in ("run/dataset.bin", "run/tokenizer/automodel_tokenizer.json"):
        object_server.bucket(BUCKET)
        object_server.client().put_object(Bucket=BUCKET, Key=key, Body=b"somebody's")
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match="s3://outputs/run holds"):
                make(f"{url}/run", text, overwrite=overwrite)
        assert object_server.objects(BUCKET) == {key: b"somebody's"}


def test_a_second_writer_is_refused(url, object_server, text):
    with Lease(f"{url}/run/.lock", "somebody else", "busy"), pytest.raises(AutomodelError) as refused:
        make(f"{url}/run", text)
    assert "another process is writing a corpus to s3://outputs/run: process" in refused.value.message
    assert "if it died, its lease ends in 1" in refused.value.hint
    assert object_server.objects(BUCKET) == {}


def test_a_lost_lease_ends_the_run(url, object_server, text, monkeypatch):
    """Somebody took it over: nothing is published any more."""

    def steal(request):
        if request.startswith("PUT") and "dataset_00001.bin" in request:
            object_server.watch = lambda request: None
            object_server.client().put_object(Bucket=BUCKET, Key="run/.lock", Body=b"{}")

    object_server.watch = steal
    monkeypatch.setattr("automodel_cli.storage.lease.LEASE_SECONDS", 0.2)
    monkeypatch.setattr(mirror, "Lease", lambda *args: Lease(*args, seconds=0.2))
    with pytest.raises(AutomodelError, match=r"the lease s3://outputs/run/.lock was lost"):
        make(f"{url}/run", text, progress=lambda event: time.sleep(0.01))
    assert "run/manifest.json" not in object_server.objects(BUCKET)


def test_faults_of_the_network_change_nothing(url, object_server, tmp_path, text):
    make(tmp_path / "here", text)
    object_server.faults = faults = Faults(errors=0.05, lost=0.05, cuts=0.05, most=30, seed=2)
    make(f"{url}/run", text)
    assert faults.count >= 5
    object_server.faults = Faults()
    assert object_server.objects(BUCKET) == {f"run/{name}": data for name, data in files(tmp_path / "here").items()}


def test_a_listing_that_lags(url, object_server, text):
    """What a manifest lists is asked for by name."""
    make(f"{url}/run", text)
    object_server.faults = Faults(hidden=frozenset({"run/dataset_00002.bin", "run/val.bin", "run/manifest.json"}))
    assert make(f"{url}/run", text).already_complete


def test_finished_files_leave_the_disk(url, tmp_path, text, monkeypatch):
    monkeypatch.setattr(mirror, "_HOLLOW_FROM", 10_000)
    used = []

    def look(event):
        used.append(sum(path.stat().st_blocks * 512 for path in (tmp_path / "cache").rglob("*") if path.is_file()))

    made = make(f"{url}/run", text, shard_tokens=40_000, progress=look)
    assert sum(size for _, size in made.manifest.listed()) > 2.5 * max(used)


def test_small_outputs_are_local(text):
    cfg = TokenizerTrainConfig(dataset=text, output_dir="s3://bucket/tokenizer", vocab_size=300)
    with pytest.raises(ConfigError, match="writes to a local folder"):
        train_tokenizer.run(cfg, progress=lambda event: None, say=lambda line: None)


def test_an_upload_that_fails_is_the_end(url, object_server, text):
    object_server.faults = Faults(
        errors=1.0, status=403, matches=lambda method, path: path.endswith("dataset_00001.bin")
    )
    with pytest.raises(ConfigError, match=r"cannot write s3://outputs/run/dataset_00001.bin"):
        make(f"{url}/run", text)
    object_server.faults = Faults()
    assert make(f"{url}/run", text).continued


def test_a_clear_that_was_killed_goes_on_anywhere(url, object_server, tmp_path, text, monkeypatch):
    """Between its first word and its last one: nothing of the old run is taken for the new one's."""
    make(tmp_path / "here", text, shard_tokens=300_000)
    for elsewhere in (False, True):
        make(f"{url}/run", text, overwrite=True)
        monkeypatch.setattr(mirror.Mirror, "_delete_pieces", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(f"{url}/run", text, shard_tokens=300_000, overwrite=True)
        monkeypatch.undo()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{elsewhere}"))
        for name, value in object_server.environment.items():
            monkeypatch.setenv(name, value)
        make(f"{url}/run", text, shard_tokens=300_000)
        expected = {f"run/{name}": data for name, data in files(tmp_path / "here").items()}
        assert object_server.objects(BUCKET) == expected
