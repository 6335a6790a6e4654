"""Verify of a place in object storage finds each changed, short or missing object, and names it."""

import json

import pytest

from automodel_cli.config.schema.megatron import PreprocessMegatronConfig
from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig, VerifyConfig
from automodel_cli.errors import DataError
from automodel_cli.recipes.preprocess import megatron, nanogpt, verify

QUIET = {"progress": lambda event: None, "say": lambda line: None}


@pytest.fixture
def url(object_server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = object_server.bucket("verified")
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"document {n} " * 9}) + "\n" for n in range(200)))
    more = {"tokenizer": "byte", "num_workers": 1}
    nanogpt.run(PreprocessNanogptConfig(dataset=str(text), output_dir=f"{bucket}/a", val_fraction=0.2, **more), **QUIET)
    megatron.run(PreprocessMegatronConfig(input=[str(text)], output_prefix=f"{bucket}/m/x", **more), **QUIET)
    return bucket


def check(url):
    done = []
    report = verify.run(VerifyConfig(path=url), progress=lambda *told: done.append(told))
    assert not done or done[-1][0] == done[-1][1]
    return report


def test_sound(url):
    for place, hashed in [("a", 5), ("a/manifest.json", 5), ("m", 3), ("m/x.manifest.json", 3)]:
        report = check(f"{url}/{place}")
        assert (report.problems, report.warnings, report.hashed) == ([], [], hashed)


@pytest.mark.parametrize("key", ["a/dataset.bin", "a/tokenizer/automodel_tokenizer.json", "m/x_0_text_document.idx"])
def test_each_fault_is_named(object_server, url, key):
    client, folder = object_server.client(), f"{url}/{key[0]}"
    data = object_server.objects("verified")[key]
    for fault, words in [
        (data[:-1] + bytes([data[-1] ^ 1]), "was changed: its hash"),
        (data[:-1], "bytes long, the manifest says"),
        (None, "is missing"),
    ]:
        client.delete_object(Bucket="verified", Key=key)
        if fault is not None:
            client.put_object(Bucket="verified", Key=key, Body=fault)
        problems = check(folder).problems
        assert len(problems) == 1 and problems[0].startswith(f"{url}/{key} ") and words in problems[0]


def test_manifests_that_are_damaged_missing_or_not_there_yet(object_server, url):
    client = object_server.client()
    data = object_server.objects("verified")["a/manifest.json"]
    client.put_object(Bucket="verified", Key="a/manifest.json", Body=data.replace(b"200", b"201"))
    assert "s3://verified/a/manifest.json is damaged" in check(f"{url}/a").problems[0]
    client.delete_object(Bucket="verified", Key="a/manifest.json")
    with pytest.raises(DataError, match=r"holds no manifest.json"):
        check(f"{url}/a")
    client.put_object(Bucket="verified", Key="a/.upload.json", Body=b"{}")
    assert "interrupted run" in check(f"{url}/a").problems[0]
    client.put_object(Bucket="verified", Key="m/stray.bin", Body=b"")
    assert check(f"{url}/m").warnings == [f"{url}/m/stray.bin is listed in no manifest"]
