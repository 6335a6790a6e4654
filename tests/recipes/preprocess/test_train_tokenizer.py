"""preprocess tokenizer: from files to a folder that opens anywhere; the same text gives the same bytes."""

from pathlib import Path

import pytest

from automodel_cli.config.schema.preprocess import TokenizerTrainConfig
from automodel_cli.corpus.tokenizer import open_tokenizer
from automodel_cli.errors import ConfigError
from automodel_cli.recipes.preprocess import train_tokenizer
from automodel_cli.recipes.preprocess.train_tokenizer import TokenizerTrainResult


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    for k in range(20):
        (folder / f"m{k}.py").write_text(f"def function_{k}(argument):\n    return argument + {k}\n" * 10)
    (folder / "bad.py").write_bytes(b"\xff")
    return folder


def train(sources: Path, out: Path, **options: object) -> TokenizerTrainResult:
    cfg = TokenizerTrainConfig(dataset=str(sources), output_dir=str(out), vocab_size=290, **options)  # type: ignore[arg-type]
    return train_tokenizer.run(cfg, progress=lambda event: None, say=lambda line: None)


def test_train_save_open(sources: Path, tmp_path: Path) -> None:
    result = train(sources, tmp_path / "tok")
    assert (result.documents, result.bad_rows) == (20, ["bad.py: not UTF-8"])
    tokenizer = open_tokenizer(tmp_path / "tok")
    assert tokenizer.vocab_size == 290 and tokenizer.name == "tok"
    assert tokenizer.fingerprint() == result.tokenizer.fingerprint()
    assert len(tokenizer.encode("def function_7(argument):\n")) < 15 and result.bytes_per_token > 2
    train(sources, tmp_path / "again/tok")
    for path in (tmp_path / "tok").iterdir():
        assert path.read_bytes() == (tmp_path / "again/tok" / path.name).read_bytes()


def test_a_part_of_much_text_is_drawn_by_seed(sources: Path, tmp_path: Path) -> None:
    few = train(sources, tmp_path / "a", max_bytes=4000)
    assert 0 < few.documents < 20
    other = train(sources, tmp_path / "b", max_bytes=4000, seed=3)
    assert other.tokenizer.fingerprint() != few.tokenizer.fingerprint()


def test_a_tokenizer_is_not_replaced_unasked(sources: Path, tmp_path: Path) -> None:
    train(sources, tmp_path / "tok")
    with pytest.raises(ConfigError, match="holds a tokenizer"):
        train(sources, tmp_path / "tok")
    train(sources, tmp_path / "tok", overwrite=True)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_of_others_is_never_replaced(sources: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / name).write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="did not make"):
            train(sources, tmp_path / "tok", overwrite=overwrite)
    assert (tmp_path / "tok" / name).read_text() == "precious"
