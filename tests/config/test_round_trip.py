"""Any text in a configuration survives being saved and read again; any file gives a configuration or a ConfigError."""

import tempfile
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st
from tests.effort import examples

from automodel_cli.config.load import load_config, to_yaml
from automodel_cli.config.schema.base import Section
from automodel_cli.config.schema.pretrain import OpenSection, PretrainConfig
from automodel_cli.config.schema.trackers import WandbConfig
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
        st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=8,
)

FOREIGN = {"_target_": "torch.nn.CrossEntropyLoss"}  # whose arguments are not known before it is imported


class Small(Section):
    """A closed and an open section: what is written does not depend on how many others there are."""

    wandb: WandbConfig | None = None
    loss_fn: OpenSection | None = None


def load(text: str, *overrides: str, model: type[Section] = PretrainConfig) -> Section:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cfg.yaml"
        path.write_text(text, encoding="utf-8", newline="")
        return load_config(model, path, overrides)


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
    cfg = Small(wandb={"notes": text}, loss_fn={**FOREIGN, "key": [text, {"deeper": text}]})
    assert load(to_yaml(cfg), model=Small) == cfg


@examples(50)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), VALUES, max_size=4))
def test_values_survive(options):
    cfg = Small(loss_fn={**FOREIGN, **options})
    assert load(to_yaml(cfg), model=Small) == cfg


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
    try:
        load("", *tokens)
    except ConfigError as error:
        assert error.message
