"""What `preprocess megatron` accepts: the names of other tools, lists, amounts; and what does not go together."""

from __future__ import annotations

from pathlib import Path

import pytest

from automodel_cli.config.load import load_config, to_yaml
from automodel_cli.config.schema.megatron import PreprocessMegatronConfig
from automodel_cli.errors import ConfigError


def load(text: str, tmp_path: Path, **flags: object) -> PreprocessMegatronConfig:
    (tmp_path / "cfg.yaml").write_text(text)
    return load_config(PreprocessMegatronConfig, tmp_path / "cfg.yaml", flags=flags)


def test_names_of_nemos_tool(tmp_path: Path) -> None:
    cfg = load(
        "input: a/*.jsonl\njson_keys: text\npretrained_model_name_or_path: openai-community/gpt2\n"
        "workers: 8\nappend_eod: true\noutput_prefix: out/data\nlog_interval: 1000\n",
        tmp_path,
    )
    assert (cfg.input, cfg.json_keys, cfg.tokenizer, cfg.workers) == (
        ["a/*.jsonl"],
        ["text"],
        "openai-community/gpt2",
        8,
    )
    assert cfg.collect_notes() == ["log_interval is ignored: progress is shown by time, not by documents"]


def test_defaults_and_amounts(tmp_path: Path) -> None:
    cfg = load("{input: x, max_tokens: 1.5M, shard_tokens: 200K}", tmp_path)
    assert (cfg.max_tokens, cfg.shard_tokens) == (1_500_000, 200_000)
    assert (cfg.json_keys, cfg.tokenizer, cfg.output_prefix) == (["text"], "gpt2", "processed_data")
    assert (cfg.append_eod, cfg.special_tokens, cfg.add_special_tokens, cfg.skip_empty) == (
        False,
        "text",
        True,
        False,
    )
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(cfg))
    assert load_config(PreprocessMegatronConfig, again) == cfg


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "give either input (files) or dataset (from the Hub)"),
        ("{input: a, dataset: b}", "give either input (files) or dataset (from the Hub)"),
        ("{input: a, shards: 2, shard_tokens: 5}", "shards and shard_tokens exclude each other"),
        ("{input: a, shards: 0}", "shards"),
        ("{dataset: a, shuffle: true}", "shuffle needs input (files)"),
        ("{input: a, keep_newlines: true}", "keep_newlines needs split_sentences"),
        ("{input: a, json_keys: [x, x]}", "json_keys names a key twice"),
        ("{input: a, json_keys: [x/y]}", "become file names"),
        ("{input: a, json_keys: []}", "json_keys"),
        ("{input: a, output_prefix: out/}", "become file names"),
        ("{input: a, special_tokens: parsed}", "special_tokens"),
        ("{input: a, append_eot: true}", "append_eod"),
    ],
)
def test_what_does_not_go(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(text, tmp_path)
    assert message in f"{error.value.message}\n{error.value.hint}"
