"""preprocess chat, whole: counts by task, the same bytes however it is run, splits, interruptions, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.recipes.preprocess.chat_files import gsm8k, mmlu, smoltalk, task_mixture, write_jsonl, write_parquet

from automodel_cli.config.schema.chat import PreprocessChatConfig
from automodel_cli.config.schema.preprocess import VerifyConfig
from automodel_cli.corpus.conversations.chat_format import chat_format_of
from automodel_cli.corpus.conversations.conversation import parse_row
from automodel_cli.corpus.conversations.encode import ConversationEncoder
from automodel_cli.corpus.formats.conversation_files import ConversationFile, count_by_task, read_order
from automodel_cli.corpus.formats.manifest import read_corpus_manifest
from automodel_cli.corpus.tokenizer import load_tokenizer
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.files import exclusive_lock
from automodel_cli.recipes.preprocess import chat, verify


def run(folder: Path, **options):
    cfg = PreprocessChatConfig(**{"tokenizer": "byte", "num_workers": 0, "output_dir": str(folder), **options})
    said: list[str] = []
    result = chat.run(cfg, progress=lambda event: None, say=said.append)
    return result, said


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The mixture of ``chat_files``, with bytes as tokens."""
    folder = tmp_path_factory.mktemp("chat")
    mixture = task_mixture(folder / "in")
    run(folder / "out", mixture=mixture)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_counts_by_task(made) -> None:
    counts = {(one.split, one.task): one for one in count_by_task(read_corpus_manifest(made / "out"))}
    assert {key: one.examples for key, one in counts.items()} == {
        ("train", "smoltalk"): 30, ("train", "mmlu_auxiliary"): 20, ("train", "gsm8k"): 20, ("train", "stars"): 8,
        ("val", "smoltalk"): 6, ("val", "mmlu_auxiliary"): 5, ("val", "stars"): 2,
    }  # fmt: skip
    chat_format = chat_format_of(load_tokenizer(made / "out"))
    gsm = [
        chat_format.render(parse_row({"prompt": row["question"], "completion": row["answer"].replace(mark, "")}))
        for row in gsm8k(10)
        for mark in [row["answer"][row["answer"].index("<<") : row["answer"].index(">>") + 2]]
    ]
    found = counts["train", "gsm8k"]  # two epochs
    assert found.tokens == 2 * sum(len(one.ids) for one in gsm)
    assert found.learned == 2 * sum(sum(one.mask) for one in gsm)


def test_files_are_those_of_the_manifest_and_verify_reads_them(made) -> None:
    manifest = read_corpus_manifest(made / "out")
    report = verify.run(VerifyConfig(path=str(made / "out")), progress=lambda *_: None)
    assert report.problems == report.warnings == [] and report.hashed == len(manifest.files)
    assert manifest.options["format"] == "chatml" and manifest.eot == "none"
    assert {file.role for file in manifest.files} == {"tokens", "bos_index", "mask", "order", "tokenizer"}
    assert manifest.tokens == sum(file.tokens for file in manifest.token_files())


def test_the_order_mixes_the_training_files(made) -> None:
    files = [made / "out" / file.name for file in read_corpus_manifest(made / "out").token_files("train")]
    sizes = [len(ConversationFile.open(path)) for path in files]
    assert sizes == [30, 20, 10, 8]
    order = read_order(made / "out", sum(sizes))
    assert np.bincount(order).tolist() == [1] * 50 + [2] * 10 + [1] * 8


def test_rows_in_a_file_are_those_chosen_in_order(made) -> None:
    found = ConversationFile.open(made / "out/train_smoltalk.bin")
    tokenizer = load_tokenizer(made / "out")
    texts = [tokenizer.decode(found.read(number)[0]) for number in range(len(found))]
    numbers = [int(text.partition("Tell me about ")[2].partition(".")[0]) for text in texts]
    assert numbers == sorted(set(numbers)) and set(numbers) < set(range(40))
    assert numbers != list(range(30))  # a random choice
    assert all("And <|im_end|>?<|im_end|>\n" in text for text in texts)


def test_workers_change_no_byte(made, tmp_path) -> None:
    run(tmp_path / "out", mixture=str(made / "in/mixture.yaml"), num_workers=2, chunk_size=3)
    assert contents(tmp_path / "out") == contents(made / "out")


@pytest.mark.parametrize("at", [3, 60])
def test_an_interrupted_run_ends_with_the_same_bytes(made, tmp_path, monkeypatch, at) -> None:
    encode, calls = ConversationEncoder.__call__, []

    def killed(self, unit):
        calls.append(unit)
        if len(calls) == at:
            raise KeyboardInterrupt
        return encode(self, unit)

    options = {"mixture": str(made / "in/mixture.yaml"), "chunk_size": 1}
    with monkeypatch.context() as patch:
        patch.setattr(ConversationEncoder, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", **options)
    assert not (tmp_path / "out/manifest.json").exists() and (tmp_path / "out/progress.json").exists()
    with pytest.raises(ConfigError, match="made in another way: train_on assistant -> all"):
        run(tmp_path / "out", **options, train_on="all")
    result, said = run(tmp_path / "out", **options)
    assert result.continued and any("continuing" in line for line in said)
    assert contents(tmp_path / "out") == contents(made / "out")


def test_a_finished_run_is_left_alone_and_another_refused(made) -> None:
    before = contents(made / "out")
    result, said = run(made / "out", mixture=str(made / "in/mixture.yaml"))
    assert result.already_complete and "nothing to do" in said[-1]
    with pytest.raises(ConfigError, match="--overwrite"):
        run(made / "out", mixture=str(made / "in/mixture.yaml"), train_on="all")
    with exclusive_lock(made / "out/.lock", busy=""), pytest.raises(Exception, match="another process is writing"):
        run(made / "out", mixture=str(made / "in/mixture.yaml"))
    assert contents(made / "out") == before


def test_overwrite_replaces_what_was_made_and_nothing_else(tmp_path) -> None:
    data = write_jsonl(tmp_path / "chats.jsonl", smoltalk(10))
    run(tmp_path / "out", dataset=data, val_fraction=0.2)
    (tmp_path / "out/notes.txt").write_text("mine")
    run(tmp_path / "out", dataset=data, train_on="all", overwrite=True)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "notes.txt" in names and "val_messages.bin" not in names and "train_messages.bin" in names
    (one,) = count_by_task(read_corpus_manifest(tmp_path / "out"))
    assert one.learned == one.tokens
    stranger = tmp_path / "other"
    stranger.mkdir()
    (stranger / "train_messages.bin").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="no manifest of ours"):
        run(stranger, dataset=data)


def test_bad_rows_are_counted_and_named(tmp_path) -> None:
    rows = [*smoltalk(5), {"text": "no"}, {"messages": [{"role": "user", "content": "alone"}]}]
    path = Path(write_jsonl(tmp_path / "chats.jsonl", rows))
    path.write_text(path.read_text() + "{broken\n[1]\n")
    result, _ = run(tmp_path / "out", dataset=str(path))
    assert result.manifest.bad_rows == 4 and result.manifest.documents == 5
    assert result.bad_rows == [
        "chats.jsonl:6: a row with text holds no conversation",
        "chats.jsonl:7: nothing in it is learned",
        "chats.jsonl:8: malformed JSON",
        "chats.jsonl:9: a row is list, not an object",
    ]
    with pytest.raises(DataError, match=r"bad row chats\.jsonl:6"):
        run(tmp_path / "strict", dataset=str(path), strict=True)
    write_jsonl(path, rows[5:])
    with pytest.raises(DataError, match="task messages, training, has no conversation"):
        run(tmp_path / "none", dataset=str(path))
    assert not (tmp_path / "none/progress.json").exists()


def test_strategies_and_lengths_of_a_mixture(tmp_path) -> None:
    data = {"a": write_jsonl(tmp_path / "a.jsonl", gsm8k(12)), "b": write_parquet(tmp_path / "b.parquet", mmlu(4))}
    text = "strategy: {}\nexamples: {}\ntasks:\n  gsm8k: {{dataset: {a}, weight: 3}}\n"
    text += "  mmlu_auxiliary: {{dataset: {b}}}\n"
    for strategy, examples, expected in (("uniform", "null", [8, 8]), ("weighted", 20, [15, 5])):
        (tmp_path / "mixture.yaml").write_text(text.format(strategy, examples, **data))
        result, _ = run(tmp_path / strategy, mixture=str(tmp_path / "mixture.yaml"))
        assert [one.examples for one in count_by_task(result.manifest)] == expected


def test_the_mixture_of_the_readme(monkeypatch, tmp_path) -> None:
    """With the sizes that the public data sets have."""
    sizes = {
        ("HuggingFaceTB/smoltalk", "all", "train"): 1_043_917, ("HuggingFaceTB/smoltalk", "all", "test"): 54_948,
        ("cais/mmlu", "all", "auxiliary_train"): 99_842, ("cais/mmlu", "all", "validation"): 1_531,
        ("openai/gsm8k", "main", "train"): 7_473, ("openai/gsm8k", "main", "test"): 1_319,
    }  # fmt: skip
    monkeypatch.setattr(chat, "open_rows", lambda *where: range(sizes[where]))
    mixture = Path(__file__).parents[3] / "configs/task_mixture.yaml"
    _, said = run(tmp_path / "out", mixture=str(mixture), dry_run=True)
    rows = {line.split("write ")[1]: int(line.split()[2].replace(",", "")) for line in said if " rows of " in line}
    assert sum(count for path, count in rows.items() if "train_" in path) == 567_315
    assert sum(count for path, count in rows.items() if "val_" in path) == 7_850


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tasks: {}", "names no task"),
        ("tasks: {mine: {dataset: x.jsonl}}", "say which one it is with task"),
        ("tasks: {'a b': {task: messages}}", "letters, digits"),
        ("tasks: {messages: {}}", "names no dataset"),
        ("tasks: {gsm8k: {val_fraction: 0.1, val_split: test}}", "exclude each other"),
        ("tasks: {gsm8k: {max_exampels: 3}}", "max_exampels"),
        ("tasks: {gsm8k: {dataset: '*.jsonl', val_split: test}}", r"task gsm8k has val_split, .* is local"),
        ("strategy: best\ntasks: {gsm8k: {}}", "proportional"),
    ],
)
def test_mistakes_in_a_mixture(tmp_path, text, says) -> None:
    (tmp_path / "mixture.yaml").write_text(text + "\n")
    with pytest.raises(ConfigError, match=says):
        run(tmp_path / "out", mixture=str(tmp_path / "mixture.yaml"))
    assert not (tmp_path / "out").exists()


def test_mixture_or_dataset() -> None:
    for options in ({}, {"mixture": "a", "dataset": "b"}, {"mixture": "a", "val_fraction": 0.5}):
        with pytest.raises(ValueError, match=r"one of the two|each has its own|has its own"):
            PreprocessChatConfig(**options)


def test_a_tokenizers_chat_template_is_used(tmp_path) -> None:
    pytest.importorskip("transformers")
    from tests.corpus.conversations.chat_tokenizers import templated
    from tests.corpus.conversations.test_template import BY_PREFIX

    templated(BY_PREFIX).save(tmp_path / "tokenizer")
    data = write_jsonl(tmp_path / "chats.jsonl", smoltalk(3))
    result, said = run(tmp_path / "out", dataset=data, tokenizer=str(tmp_path / "tokenizer"))
    assert "its chat template" in said[0] and result.manifest.options["format"] == "template"
    assert json.loads((tmp_path / "out/tokenizer/tokenizer_config.json").read_text())["chat_template"] == BY_PREFIX


def test_a_dry_run_writes_nothing(made, tmp_path) -> None:
    result, said = run(tmp_path / "out", mixture=str(made / "in/mixture.yaml"), dry_run=True)
    assert result.manifest is None and not (tmp_path / "out").exists()
    assert any("30 rows of smoltalk" in line for line in said)
