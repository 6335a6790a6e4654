from pathlib import Path

from automodel_cli.config.docs import COMMAND, render
from automodel_cli.config.explain import all_keys
from automodel_cli.config.schema.pretrain import PretrainConfig

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == render(), f"docs/config.md is out of date; run: {COMMAND}"


def test_every_key_is_on_the_page():
    page = render()
    for key in all_keys(PretrainConfig):
        name = key.rpartition(".")[2]
        assert f"`{name}`" in page or f"`{key}`" in page or name.endswith("_*"), key


def test_the_page_is_the_same_each_time():
    assert render() == render()
