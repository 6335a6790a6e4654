"""A folder of harness tasks that nobody trusted runs nothing. Success is a canary that is not there."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from automodel_cli.assembly.checkpoint import load_model
from automodel_cli.config.schema.results import EvaluateOptions, TasksConfig
from automodel_cli.errors import ConfigError
from automodel_cli.evaluation.span_scores import SpanScorer
from automodel_cli.recipes.evaluation import tasks as evaluate_tasks

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'automodel-cli[eval]'")

from automodel_cli.evaluation.harness import run as harness
from automodel_cli.evaluation.harness.run import HarnessRequest

ROLLING = """\
task: hostile
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}/long.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: word_perplexity}}
"""
TOUCH = """\
from pathlib import Path
def run(*a, **k):
    Path({canary!r}).touch()
    return ""
Path({canary!r}).touch()
"""
ESCAPE = (
    "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}"
    "{{{{ self.__init__.__globals__.__builtins__.open({canary!r}, 'w') }}}}"
)
HOSTILE = {
    "function": "doc_to_text: !function evil.run",
    "process_docs": "process_docs: !function evil.run",
    "class": "class: !function evil.run",
    "python tag": "description: !!python/object/apply:os.system ['touch {canary}']",
    "custom data set": "custom_dataset: evil.run",
    "metric of the hub": "metric_list: [{{metric: {folder}/evil_metric}}]",
    "hf_evaluate": "metric_list: [{{metric: acc, hf_evaluate: true}}]",
    "builder": "dataset_path: pandas",
    "folder as data set": "dataset_path: {folder}",
    "remote code": "dataset_kwargs: {{data_files: {{test: {folder}/long.jsonl}}, trust_remote_code: 'no'}}",
    "prompt source": "use_prompt: '{folder}/evil.yaml:x'",
    "unsafe": "unsafe_code: true",
    "include": "include: ../outside.yaml",
    "absolute include": "include: {folder}/../outside.yaml",
    "in a group": "task: [{{task: x, process_results: evil.run}}]",
    "sampler": "fewshot_config: {{sampler: default, process_docs: evil.run}}",
    "metric that is a list": "metric_list: [{{metric: [acc]}}]",
    "data set that is a list": "dataset_path: [json]",
    "deep": "metadata: " + "[" * 3000 + "]" * 3000,
    "no mapping": "- 1",
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing is asked of the hub."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")


def hostile_folder(folder: Path, line: str, canary: Path) -> Path:
    folder.mkdir()
    (folder / "evil.py").write_text(TOUCH.format(canary=str(canary)))
    (folder / "evil_metric").mkdir()
    (folder / "evil_metric" / "evil_metric.py").write_text(TOUCH.format(canary=str(canary)))
    (folder.parent / "outside.yaml").write_text("doc_to_text: !function evil.run\n")
    (folder / "long.jsonl").write_text(json.dumps({"text": "some words"}))
    base = ROLLING.format(data=folder)
    added = line.format(canary=canary, folder=folder)
    kept = [row for row in base.splitlines() if row.split(":")[0] != added.split(":")[0]]
    text = added if added.startswith("- ") else "\n".join([*kept, added])
    if added.startswith("metric_list"):
        text = "\n".join(row for row in text.splitlines() if not row.startswith("  - "))
    (folder / "hostile.yaml").write_text(text + "\n")
    return folder


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_folder_that_nobody_trusted_runs_nothing(kind, tmp_path):
    canary = tmp_path / "canary"
    folder = hostile_folder(tmp_path / "tasks", HOSTILE[kind], canary)
    with pytest.raises(ConfigError) as caught:
        harness.evaluate(HarnessRequest(["hostile"], folder=str(folder)), None, None)
    assert f"--trust {folder}" in caught.value.hint
    assert "\n" not in caught.value.message
    assert not canary.exists()


def test_what_a_link_includes_lies_beside_what_it_leads_to(tmp_path):
    """The harness resolves a file before it looks for what that includes."""
    folder = hostile_folder(tmp_path / "tasks", "description: plain", tmp_path / "canary")
    (folder / "inner").mkdir()
    (folder / "inner" / "base").write_text("doc_to_text: !function evil.run\n")
    (folder / "inner" / "linked").write_text("task: linked\ninclude: base\n")
    (folder / "base").write_text("description: plain\n")
    (folder / "linked.yaml").symlink_to("inner/linked")
    with pytest.raises(ConfigError, match="!function"):
        harness.evaluate(HarnessRequest(["linked"], folder=str(folder)), None, None)


def test_a_file_is_no_folder_of_tasks(tmp_path):
    (tmp_path / "task.yaml").write_text("task: x\n")
    with pytest.raises(ConfigError, match="is not a folder"):
        harness.evaluate(HarnessRequest(["x"], folder=str(tmp_path / "task.yaml")), None, None)


def test_a_template_stays_in_its_sandbox(tiny_hf, tmp_path):
    canary = tmp_path / "canary"
    folder = hostile_folder(tmp_path / "tasks", 'doc_to_target: "{canary}"', canary)
    text = (folder / "hostile.yaml").read_text().replace(f'"{canary}"', json.dumps(ESCAPE.format(canary=str(canary))))
    (folder / "hostile.yaml").write_text(text)
    common = {"checkpoint": str(tiny_hf.folder), "harness": "hostile", "device": "cpu", "precision": "fp32"}
    cfg = TasksConfig(**common, harness_path=str(folder), output=str(tmp_path / "out.json"))
    with pytest.raises(ConfigError, match="a template of the tasks cannot be used: SecurityError"):
        evaluate_tasks.run(cfg)
    assert not canary.exists()


def test_code_of_a_trusted_folder_runs(tiny_hf, tmp_path):
    """The control: the same folder does run, once it is trusted by name."""
    canary = tmp_path / "canary"
    folder = hostile_folder(tmp_path / "tasks", HOSTILE["function"], canary)
    common = {"checkpoint": str(tiny_hf.folder), "harness": "hostile", "device": "cpu", "precision": "fp32"}
    cfg = TasksConfig(**common, harness_path=str(folder), output=str(tmp_path / "out.json"))
    evaluate_tasks.run(cfg, options=EvaluateOptions(trust=(str(folder),)))
    assert canary.exists()


def test_a_chat_template_stays_in_its_sandbox(tiny_hf, tmp_path):
    canary = tmp_path / "canary"
    tokenizer = copy.deepcopy(tiny_hf.tokenizer)
    tokenizer.chat_template = ESCAPE.format(canary=str(canary))
    loaded = load_model(tiny_hf.folder)
    model = harness.HarnessModel(SpanScorer(loaded.model), loaded.tokenizer, tokenizer)
    with pytest.raises(ConfigError, match="the checkpoint's chat template cannot be used: SecurityError"):
        model.apply_chat_template([{"role": "user", "content": "hello"}])
    assert not canary.exists()
