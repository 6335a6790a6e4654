"""Model cards: facts, scores of these weights and no others, no secrets; text of others stays text."""

from __future__ import annotations

import json

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from markdown_it import MarkdownIt

from automodel_cli.assembly.hub.model_card import model_card, public
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.corpus.conversations.chatml import with_chatml
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.models.gpt2 import build_gpt2_model

HOSTILE = [
    "<script>alert(1)</script>",
    "</code></pre><img src=x onerror=alert(1)>",
    "```\n# Owned\n<b>x</b>",
    "`````` ` `` <u>x</u>",
    "a | b |\n| c | <i>d</i>",
    "\n---\nlicense: mit\n---\n<em>x</em>",
    "[click](javascript:alert(1)) ![x](http://evil.example/x.png)",
    "http://evil.example/ www.evil.example me@evil.example",
    "}}{{ 7*7 }} {% raw %}",
    "\x1b[31mred\u202e\u2028<s>x</s>",
    "&lt;script&gt; &#60;b&#62;",
]


def step_folder(run, *, config="", facts=None, tokenizer=None, metrics=None, val_losses=None):
    model = build_gpt2_model(vocab_size=259, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    model.init_weights(0)
    known = {"model": model.model_config(), "param_counts": {"matrix": 1000, "embedding": 24}}
    return Checkpointer(run).save(
        3,
        model=model,
        optimizer=None,
        state={"train": {"tokens_seen": 4096}},
        loader_state={},
        config_yaml=config,
        facts={**known, **(facts or {})},
        tokenizer_folder=tokenizer,
        metrics={"loss": 1.5, "val_loss": {"default": 1.25, **(val_losses or {})}},
    )


def write_results(step, name, *, fingerprint=None, **content):
    fingerprint = fingerprint or layout.read_step_manifest(step)["self"]
    checkpoint = {"path": str(step), "step": 3, "fingerprint": fingerprint}
    body = {"format": "automodel-results/1", "checkpoint": checkpoint, "settings": {}, **content}
    (step.parent / f"results_{step.name}_{name}.json").write_text(json.dumps(body))


def task(accuracy=0.5):
    return {"version": "1", "data": "x", "shots": 5, "count": 2, "accuracy": accuracy, "stderr": 0.1, "correct": "01"}


def front_matter(card):
    """As the Hub's own library reads it."""
    return ModelCard(card).data.to_dict()


def test_what_a_card_says(tmp_path):
    config = yaml.safe_dump(
        {
            "init_from": "gpt2",
            "dataset": {"_target_": "NanogptDataset", "file_pattern": "/home/jane/corpus/train.bin"},
            "rng": {"seed": 7},
            "checkpoint": {"checkpoint_dir": "/home/jane/runs/a", "push_to_hub": "jane/x"},
            "wandb": {"entity": "jane"},
        }
    )
    facts = {
        "stage": "mid-training",
        "data": {"class": "NanogptDataset", "fingerprint": "xxh3:0", "plan": {"tokens": 123456}},
        "tokenizer": {"name": "gpt2"},
    }
    step = step_folder(tmp_path / "run", config=config, facts=facts)
    write_results(step, "val", sets=[{"data": "/home/jane/val.bin", "loss": 2.25, "bits_per_byte": 1.125}])
    write_results(step, "core", tasks={"arc": task()}, means={"core": {"tasks": 1, "of": 22, "score": 0.25}})
    card = model_card(step, repo_id="me/gpt", license="apache-2.0")
    for words in (
        "# me/gpt\n",
        "A gpt2 model with 1.0K parameters after 3 updates and 4,096 tokens",
        'pipeline("text-generation", "me/gpt")',
        "vllm serve me/gpt",
        "- files: `.../train.bin`",
        "- tokens in the files: 123,456",
        "| `val.bin` | `loss` | 2.2500 | `results_step_00000003_val.json` |",
        "| `arc` | `accuracy, 5 shots` | 0.5000 |",
        "- weights from: `gpt2`",
        "- validation loss, default: 1.2500",
        "- seed: 7",
        "file_pattern: '.../train.bin'",
    ):
        assert words in card, words
    assert "jane" not in card
    front = front_matter(card)
    assert front["license"] == "apache-2.0" and front["base_model"] == "openai-community/gpt2"
    assert front["library_name"] == "transformers" and front["pipeline_tag"] == "text-generation"
    found = {(one.dataset_name, one.metric_type): one.metric_value for one in ModelCard(card).data.eval_results}
    assert found[("val.bin", "loss")] == 2.25 and found[("core", "mean of 1 tasks")] == 0.25
    assert card == model_card(step, repo_id="me/gpt", license="apache-2.0")


def test_the_least_that_is_known_makes_a_card(tmp_path):
    """An old checkpoint, without configuration, tokenizer or scores; and no license was named."""
    card = model_card(step_folder(tmp_path / "run"))
    assert "license" not in front_matter(card) and "None was named" in card
    assert "## Scores" not in card and "## Configuration" not in card and '"FOLDER"' in card
    (tmp_path / "README.md").write_text(card)
    assert metadata_load(tmp_path / "README.md")["tags"] == ["automodel", "pretraining"]


def test_facts_of_odd_types_make_a_card_all_the_same(tmp_path):
    facts = {
        "model": {"family": "hf", "config": [1], "vocab_size": {"a": 1}},
        "param_counts": {"a": "x", "b": None},
        "data": {"class": [1], "plan": "x", "fingerprint": 3},
        "versions": [1, {"a": 2}],
        "optimizer": {"class": {"b": True}},
    }
    config = "rng: 5\ninit_from: {a: [1]}\ndataset: [x, {y: 2020-01-01}]\n3: {4: 5}\n? [a, b]\n: c\n"
    card = model_card(step_folder(tmp_path / "run", facts=facts, config=config))
    assert front_matter(card)["library_name"] == "transformers" and "# model\n" in card


def test_a_model_that_is_talked_to(tmp_path):
    with_chatml(ByteTokenizer()).save(tmp_path / "tokenizer")
    card = model_card(step_folder(tmp_path / "run", tokenizer=tmp_path / "tokenizer"))
    assert "conversational" in front_matter(card)["tags"] and '{"role": "user"' in card


def test_scores_of_other_weights_and_damaged_files_are_no_scores(tmp_path):
    step = step_folder(tmp_path / "run")
    write_results(step, "other", fingerprint="xxh3:0123456789abcdef", sets=[{"data": "v", "loss": 9.0}])
    write_results(step, "none", sets=[{"data": "v", "loss": None}])
    (step.parent / f"results_{step.name}_torn.json").write_text("{")
    (step.parent / f"results_{step.name}_list.json").write_text("[1]")
    card = model_card(step)
    assert "## Scores" not in card and "model-index" not in front_matter(card)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_others_is_no_markup(tmp_path, text):
    config = yaml.safe_dump(
        {
            "init_from": text,
            "dataset": {"_target_": text, "file_pattern": text, text: text},
            text: [text],
        }
    )
    facts = {
        "data": {"class": text, "fingerprint": text, "plan": {}},
        "tokenizer": {"name": text},
        "optimizer": {"class": text},
        "versions": {text: text},
        "precision": {"compute": text},
    }
    step = step_folder(tmp_path / "run", config=config, facts=facts, val_losses={text: 1.0})
    name = text.replace("/", " ")
    write_results(step, "x", sets=[{"data": name, "loss": 1.0}], tasks={text: task()})
    card = model_card(step, repo_id="me/gpt")
    front = front_matter(card)
    assert front.keys() == {"library_name", "pipeline_tag", "tags", "model-index"}
    assert sum(len(one["metrics"]) for one in front["model-index"][0]["results"]) == 2
    page = MarkdownIt("commonmark", {"linkify": False}).enable("table").parse(ModelCard(card).text)
    tokens = [token for one in page for token in (one, *(one.children or ()))]
    kinds = {token.type for token in tokens}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "em_open", "hr"}
    headings = [page[i + 1].content for i, one in enumerate(page) if one.type == "heading_open"]
    assert headings == ["me/gpt", "Use", "Data", "Scores", "Training", "License", "Configuration"]
    plain = "".join(token.content for token in tokens if token.type == "text")
    assert "evil" not in plain.replace("validation loss", "") or text.startswith(("http", "["))
    assert "\x1b" not in card and "\u202e" not in card


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/jane/my data/train.bin", ".../train.bin"),
        ("~/data/*.bin", ".../*.bin"),
        (r"C:\Users\jane\train.bin", ".../train.bin"),
        ("file:///home/jane/x", ".../x"),
        ("FILE:/home/jane/prompt.txt", "FILE:.../prompt.txt"),
        ("0.3 /home/jane/a.bin 0.7 /home/jane/b.bin", "0.3 .../a.bin 0.7 .../b.bin"),
        ("data/train.bin", "data/train.bin"),
        ("HuggingFaceFW/fineweb", "HuggingFaceFW/fineweb"),
        ("https://example.com/a/b", "https://example.com/a/b"),
        ("s3://key:word@bucket/x", "s3://(left out)@bucket/x"),
        ("https://example.com/x?sig=abc", "https://example.com/x?(left out)"),
        ("hf_abcdefghijklmnopqrst", "(left out)"),
        ("${MY_TOKEN}", "${MY_TOKEN}"),
    ],
)
def test_what_is_published_of_a_text(value, expected):
    assert public(value) == expected


def test_secrets_are_known_by_their_keys():
    section = {
        "api_key": "x", "hf_token": "x", "password": ["x"], "token": "x", "client_secret": "x", "max_tokens": 5,
        "eos_token": "</s>", "tokenizer": "gpt2", "storage": {"token": "${TOKEN}"}, "keys": ["text"],
        "passwd": 1234, "sas_token": "x", "X-Api-Key": "x", "Authorization": "Basic x", "secrets": {"a": "x"},
        "auth_token": "${TOKEN,x}", "use_token": True,
    }  # fmt: skip
    public_ones = ("max_tokens", "eos_token", "tokenizer", "storage", "keys", "use_token")
    assert public({"secret_" * 30_000 + "!": "x"}) == {"secret_" * 30_000 + "!": "(left out)"}  # and takes no time
    assert public({"dataset": section})["dataset"] == {
        **dict.fromkeys(section, "(left out)"),
        **{name: section[name] for name in public_ones},
        "password": ["(left out)"],
    }


def test_a_secret_among_the_data_is_not_told_as_a_file(tmp_path):
    section = {"file_pattern": "train.bin", "storage": {"hf_token": "swordfish", "credentials": {"user": "swordfish"}}}
    card = model_card(step_folder(tmp_path / "run", config=yaml.safe_dump({"dataset": section})))
    assert "- files: `train.bin`\n" in card and "hf_token: (left out)" in card and "swordfish" not in card
