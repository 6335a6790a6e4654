"""lm-evaluation-harness over our engine gives the numbers of its own ``hf`` model, on local tasks."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tests.evaluation.small_bundle import ITEMS

from automodel_cli.assembly.checkpoint import load_model
from automodel_cli.config.schema.results import TasksConfig
from automodel_cli.errors import ConfigError
from automodel_cli.evaluation.icl.rows import Encoder
from automodel_cli.evaluation.span_scores import SpanScorer
from automodel_cli.recipes.evaluation import tasks as evaluate_tasks

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'automodel-cli[eval]'")

CHOICES = """\
task: ours_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}/arc_easy.jsonl}}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
num_fewshot: 2
doc_to_text: "{{{{query}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.5}}
"""
WRITTEN = """\
task: ours_written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}/triviaqa_small.jsonl}}}}
test_split: test
output_type: generate_until
num_fewshot: 0
doc_to_text: "{{{{context}}}}"
doc_to_target: answer
generation_kwargs: {{until: ["\\n", "."], do_sample: false, max_gen_toks: 12}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
ROLLING = """\
task: ours_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}/long.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: word_perplexity}}
  - {{metric: bits_per_byte}}
"""
NAMES = ("ours_choices", "ours_written", "ours_rolling")


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    for name in ("world_knowledge/arc_easy", "world_knowledge/triviaqa_small"):
        lines = [json.dumps(item) for item in ITEMS[name]]
        (folder / f"{name.split('/')[1]}.jsonl").write_text("\n".join(lines))
    texts = [" ".join(f"word {number}" for number in range(count)) for count in (3, 150)]  # one has several windows
    (folder / "long.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    for name, text in zip(NAMES, (CHOICES, WRITTEN, ROLLING), strict=True):
        (folder / f"{name}.yaml").write_text(text.format(data=folder))
    return folder


@pytest.fixture(scope="module", autouse=True)
def offline():
    """Data sets are built from local files, in a folder of their own; nothing is asked of the hub."""
    before = dict(os.environ)
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def ours(tiny_hf, task_folder, tmp_path_factory):
    cfg = TasksConfig(
        checkpoint=str(tiny_hf.folder),
        harness=NAMES,
        harness_path=str(task_folder),
        device="cpu",
        precision="fp32",
        output=str(tmp_path_factory.mktemp("out") / "results.json"),
    )
    return evaluate_tasks.run(cfg).results["harness"]


@pytest.fixture(scope="module")
def theirs(tiny_hf, task_folder):
    pytest.importorskip("accelerate", reason="the harness' own hf model needs accelerate")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=str(tiny_hf.folder), device="cpu", batch_size=1, dtype="float32")
    manager = TaskManager(include_path=str(task_folder), include_defaults=False)
    return simple_evaluate(model=model, tasks=list(NAMES), task_manager=manager, bootstrap_iters=0, log_samples=True)


def test_numbers_of_its_own_hf_model(ours, theirs):
    assert set(ours) == set(NAMES)
    for name in NAMES:
        expected = {key: value for key, value in theirs["results"][name].items() if "," in key and "_stderr" not in key}
        assert set(ours[name]["metrics"]) == set(expected)
        for metric, value in expected.items():
            assert ours[name]["metrics"][metric]["value"] == pytest.approx(value, rel=1e-5), (name, metric)


def test_entries_say_how_it_was_done(ours):
    entry = ours["ours_choices"]
    assert (entry["version"], entry["shots"], entry["count"]) == (1.5, 2, 17)
    assert entry["metrics"]["acc,none"]["stderr"] > 0


def test_each_request_like_its_own_hf_model(tiny_hf, theirs):
    from lm_eval.api.instance import Instance

    from automodel_cli.evaluation.harness.run import HarnessModel

    loaded = load_model(tiny_hf.folder)
    model = HarnessModel(SpanScorer(loaded.model), loaded.tokenizer)

    def asked(kind, samples):
        return [
            Instance(request_type=kind, doc={}, arguments=tuple(arguments), idx=0)
            for sample in samples
            for arguments in sample["arguments"]
        ]

    samples = theirs["samples"]["ours_choices"]
    expected = [response for sample in samples for response in sample["filtered_resps"]]
    found = model.loglikelihood(asked("loglikelihood", samples))
    assert [value for value, _ in found] == pytest.approx([float(value) for value, _ in expected], rel=1e-5)
    assert [greedy for _, greedy in found] == [str(greedy) == "True" for _, greedy in expected]
    samples = theirs["samples"]["ours_written"]
    written = model.generate_until(asked("generate_until", samples))
    assert written == [sample["resps"][0][0] for sample in samples]
    assert any(written)


def test_unknown_task_and_missing_template(tiny_hf, task_folder, monkeypatch):
    from lm_eval.tasks import TaskManager

    from automodel_cli.evaluation.harness import run as harness

    monkeypatch.setattr(
        harness,
        "_manager",
        lambda request: TaskManager(include_path=str(task_folder), include_defaults=False),
    )
    common = {"checkpoint": str(tiny_hf.folder), "harness_path": str(task_folder), "device": "cpu"}
    with pytest.raises(ConfigError, match="no task ours_nothing"):
        evaluate_tasks.run(TasksConfig(harness="ours_nothing", **common))
    with pytest.raises(ConfigError, match="no chat template"):
        evaluate_tasks.run(TasksConfig(harness="ours_choices", chat_template=True, **common))


def test_chat_template(tiny_hf):
    import copy

    from automodel_cli.evaluation.harness.run import HarnessModel

    tokenizer = copy.deepcopy(tiny_hf.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    loaded = load_model(tiny_hf.folder)
    model = HarnessModel(SpanScorer(loaded.model), loaded.tokenizer, tokenizer)
    history = [{"role": "user", "content": "hello"}]
    assert model.apply_chat_template(history) == "[user] hello\n[assistant]"
    assert model.chat_template(True) == tokenizer.chat_template
    assert loaded.tokenizer.name in model.tokenizer_name
    # special tokens that a template spells out are single ids
    assert model.tok_encode("<|endoftext|>") == [tokenizer.eos_token_id]


def test_a_text_begins_and_ends_with_the_separator_of_the_training_data(tiny_hf):
    from automodel_cli.evaluation.harness.run import HarnessModel

    loaded = load_model(tiny_hf.folder)
    model = HarnessModel(SpanScorer(loaded.model), loaded.tokenizer, separator_id=7)
    assert model.prefix_token_id == 7
    known, beyond = ({"tokenizer": {"separator_id": at}} for at in (7, loaded.model.vocab_size))
    assert replace(loaded, facts=known).separator_id == 7
    assert replace(loaded, facts=beyond).separator_id is None
    encoder = Encoder(loaded.tokenizer, 7)
    assert encoder.first_id == 7 and encoder.stop_ids == {7, loaded.tokenizer.eot_id}


def test_without_the_package(tiny_hf, monkeypatch):
    monkeypatch.setattr(evaluate_tasks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="lm-eval"):
        evaluate_tasks.run(TasksConfig(checkpoint=str(tiny_hf.folder), harness="arc_easy"))
