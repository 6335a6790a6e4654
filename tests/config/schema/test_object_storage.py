"""``data_cache`` and ``checkpoint.mirror``: amounts, folders and URLs, and what is refused before a run."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig
from automodel_cli.errors import ConfigError
from automodel_cli.storage.cache.settings import CacheSettings, default_folder


def test_the_cache_has_a_default_and_takes_amounts(load_text, small_yaml, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_text().data_cache.settings == CacheSettings(tmp_path / "automodel" / "data", 32 << 30, 4 << 20)
    own = "data_cache: {folder: ~/there, max_bytes: 1.5GiB, chunk_bytes: 1MiB}\n"
    assert load_text(small_yaml + own).data_cache.settings == CacheSettings(Path.home() / "there", 3 << 29, 1 << 20)
    for wrong in ("max_bytes: 0", "chunk_bytes: 1KiB", "chunk_bytes: 1GiB", "size: 3"):
        with pytest.raises(ConfigError, match="data_cache"):
            load_text(f"{small_yaml}data_cache: {{{wrong}}}\n")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "automodel" / "data"


def test_a_mirror_is_a_url_without_secrets(load_text, small_yaml):
    def load(mirror: str, more: str = ""):
        return load_text(f"{small_yaml}checkpoint: {{mirror: '{mirror}'{more}}}\n").checkpoint.mirror

    assert load("s3://bucket/run/") == "s3://bucket/run"
    assert load("file:///srv/runs/a") == "file:///srv/runs/a"
    for wrong, message in (
        ("runs/a", "expected a URL such as s3://bucket/run"),
        ("s3a://bucket/run", "write s3://"),
        ("hf://datasets/me/runs", "push_to_hub uploads there"),
        ("s3://key:secret@bucket/run", "with a user or key in it is refused"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            load(wrong)
        assert "secret@" not in str(caught.value)
    with pytest.raises(ConfigError, match="mirror copies checkpoints, and enabled: false makes none"):
        load("s3://bucket/run", ", enabled: false")


def test_a_folder_on_a_disk_is_no_url(load_text, small_yaml):
    for wrong in ("checkpoint: {checkpoint_dir: 's3://bucket/run'}", "data_cache: {folder: 'gs://bucket/cache'}"):
        with pytest.raises(ConfigError, match="expected a folder on a disk, found a URL"):
            load_text(f"{small_yaml}{wrong}\n")
    there = load_text(f"{small_yaml}checkpoint: {{checkpoint_dir: 'file:///srv/run'}}\n")
    assert there.checkpoint.checkpoint_dir == "/srv/run"
    with pytest.raises(ValidationError, match="expected a folder on a disk"):
        PreprocessNanogptConfig(dataset="a", temp_dir="s3://bucket/t")
