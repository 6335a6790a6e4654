"""Amounts as people write them, and options that exclude each other."""

import pytest

from automodel_cli.config.amounts import format_amount, parse_amount
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig
from automodel_cli.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("500M", 500_000_000),
        ("1.5B", 1_500_000_000),
        ("2t", 2 * 10**12),
        ("10_000", 10_000),
        ("7", 7),
        ("0.5K", 500),
        ("256MiB", 256 << 20),
    ],
)
def test_amounts(text: str, amount: int) -> None:
    assert parse_amount(text) == amount
    assert PreprocessNanogptConfig(max_tokens=text).max_tokens == amount  # type: ignore[arg-type]
    assert parse_amount(format_amount(amount)) == amount


def test_spelling_for_folder_names() -> None:
    spelled = [format_amount(n) for n in (500_000_000, 1_500_000_000, 10_000, 1_234_567, 999, 10**12)]
    assert spelled == ["500M", "1.5B", "10K", "1234567", "999", "1T"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": "0"}, "max_tokens"),
        ({"val_fraction": 1.5}, "val_fraction"),
        ({"val_fraction": 0.1, "val_tokens": "5"}, "exclude each other"),
        ({"max_tokens": "1K", "val_tokens": "1K"}, "must be less"),
        ({"shard_tokens": "3B"}, "shard_tokens"),
        ({"eot": "both"}, "eot"),
        ({"format": "npy"}, "format"),
    ],
)
def test_wrong_values_are_named(flags: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(PreprocessNanogptConfig, flags=flags)


def test_a_file_and_flags(tmp_path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("dataset: corpus.jsonl\nmax_tokens: 500M\ntokenizer: byte\n")
    cfg = load_config(PreprocessNanogptConfig, path, flags={"tokenizer": "char", "shuffle": None})
    assert (cfg.dataset, cfg.max_tokens, cfg.tokenizer, cfg.shuffle) == (
        "corpus.jsonl",
        500_000_000,
        "char",
        False,
    )
    path.write_text("dataste: x\n")
    with pytest.raises(ConfigError, match="dataset"):
        load_config(PreprocessNanogptConfig, path)
