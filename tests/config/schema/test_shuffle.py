"""What `preprocess shuffle` allows."""

import pytest

from automodel_cli.config.load import load_config, to_yaml
from automodel_cli.config.schema.shuffle import ShuffleConfig
from automodel_cli.errors import ConfigError


def load(**flags: object) -> ShuffleConfig:
    return load_config(ShuffleConfig, flags={"dataset": "x", **flags})


def test_amounts_and_names() -> None:
    cfg = load(memory="16G", chunk_size="500M", keep_columns="id, url,,")
    assert (cfg.memory, cfg.chunk_size, cfg.keep_columns) == (16 * 10**9, 500_000_000, ["id", "url"])
    assert load().keep_columns is None and load().memory == 500_000_000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"val_fraction": 0.1, "val_documents": 3}, "exclude each other"),
        ({"chunks": 2, "chunk_size": "1M"}, "exclude each other"),
        ({"name": "a/b"}, "cannot contain folders"),
        ({"name": ".."}, "cannot contain folders"),
        ({"val_fraction": 1.5}, "val_fraction"),
        ({"memory": "0"}, "memory"),
        ({"chunks": 0}, "chunks"),
    ],
)
def test_refusals(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(**flags)


def test_round_trip(tmp_path) -> None:
    cfg = load(keep_columns="id,url", val_documents=10, memory="2G")
    (tmp_path / "c.yaml").write_text(to_yaml(cfg))
    assert load_config(ShuffleConfig, tmp_path / "c.yaml") == cfg
