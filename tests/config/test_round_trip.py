"""Any text in a configuration survives being saved and read again; any file gives a configuration or a ConfigError."""

import tempfile
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st
from tests.effort import examples

from automodel_cli.config.load import load_config, to_yaml
from automodel_cli.config.schema.commands import PretrainConfig
from automodel_cli.errors import ConfigError

# Not in YAML at all: control characters (but tab and line ends), surrogates, and the two that mean null here.
TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), include_characters="\t\n"),
    min_size=1,
    max_size=40,
).filter(lambda text: text not in ("none", "None"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64) + 1, 2**64 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=8,
)

FOREIGN = {"_target_": "torch.nn.CrossEntropyLoss"}  # whose arguments are not known before it is imported


def load(text: str, *overrides: str) -> PretrainConfig:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cfg.yaml"
        path.write_text(text, encoding="utf-8", newline="")
        return load_config(PretrainConfig, path, overrides)


def config(**sections) -> PretrainConfig:
    base = {
        "model": {"_target_": "automodel_cli.models.gpt2.build_gpt2_model"},
        "dataset": {
            "_target_": "automodel_cli.data.nanogpt_dataset.NanogptDataset",
            "file_pattern": "x.bin",
            "seq_len": 8,
        },
    }
    return PretrainConfig.model_validate({**base, **sections})


@examples(150)
@given(TEXT)
@example("3e-4")
@example("yes")
@example("null")
@example("0x1F")
@example("1_000")
@example("${HOME}")
@example("$$")
@example("$${HOME}")
@example("a: b # c")
@example("- x")
@example("*.bin")
@example("=")
@example("<<")
@example("2024-01-01")
def test_text_survives(text):
    cfg = config(wandb={"notes": text}, loss_fn={**FOREIGN, "key": [text, {"deeper": text}]})
    assert load(to_yaml(cfg)) == cfg


@examples(50)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), VALUES, max_size=4))
def test_values_survive(options):
    cfg = config(loss_fn={**FOREIGN, **options})
    assert load(to_yaml(cfg)) == cfg


@examples(200)
@given(st.text(st.sampled_from("ab:-[]{}'\"#&*!|>%@`, \n\t${}<.=~?123"), max_size=60))
def test_no_file_makes_it_stumble(text):
    try:
        load(text)
    except ConfigError as error:
        assert error.message


@examples(60)
@given(st.lists(st.text(st.sampled_from("ab.-=[]{}'\"$ 1_"), max_size=12), max_size=5))
def test_no_command_line_makes_it_stumble(tokens):
    base = to_yaml(config())
    try:
        load(base, *tokens)
    except ConfigError as error:
        assert error.message
