"""Tasks put to a checkpoint on disk: the results file, means, what is missing, wrong settings; the recipes around."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from tests.evaluation.small_bundle import ITEMS, write_bundle

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.config.schema.results import BundleConfig, TasksConfig
from automodel_cli.errors import CheckpointError, ConfigError, DataError
from automodel_cli.evaluation.icl import bundle_archive
from automodel_cli.recipes.evaluation import compare_results, download_bundle
from automodel_cli.recipes.evaluation import tasks as evaluate_tasks


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


def put(tiny_run, folder, output, **settings):
    given = {"checkpoint": str(tiny_run.run), "tasks": "copa", "bundle": str(folder), "device": "cpu"}
    return evaluate_tasks.run(TasksConfig(**{**given, "precision": "fp32", "output": str(output), **settings}))


def test_results_file(tiny_run, bundle, tmp_path):
    progress = []
    cfg = TasksConfig(
        checkpoint=str(tiny_run.run),
        tasks="core,triviaqa_small",
        bundle=str(bundle),
        device="cpu",
        output=str(tmp_path / "deep" / "tasks.json"),
    )
    result = evaluate_tasks.run(cfg, reporter=Reporter(progress=lambda *step: progress.append(step)))
    stored = json.loads(result.output.read_text(encoding="utf-8"))
    assert stored == result.results
    manifest = json.loads((tiny_run.run / "step_00000007" / "manifest.json").read_text(encoding="utf-8"))
    assert stored["checkpoint"]["fingerprint"] == manifest["self"] and stored["checkpoint"]["step"] == 7
    assert set(stored["tasks"]) == {
        "copa", "arc_easy", "commonsense_qa", "winogrande", "bigbench_repeat_copy_logic", "triviaqa_small"
    }  # fmt: skip
    assert "hellaswag" in stored["missing"] and len(stored["missing"]) == 17
    core = stored["means"]["core"]
    assert (core["tasks"], core["of"]) == (5, 22)
    centred = [entry["centred"] for name, entry in stored["tasks"].items() if name != "triviaqa_small"]
    assert core["score"] == pytest.approx(sum(centred) / 5)
    assert stored["settings"]["context"] == 32 and stored["seconds"] > 0
    assert stored["versions"]["torch"]
    assert {name for _, _, name in progress} == set(stored["tasks"])


def test_entry_of_a_task(tiny_run, bundle, tmp_path):
    entry = put(tiny_run, bundle, tmp_path / "r.json").results["tasks"]["copa"]
    items = ITEMS["commonsense_reasoning/copa"]
    assert (entry["count"], entry["shots"], entry["baseline"]) == (len(items), 0, 0.5)
    assert entry["accuracy"] == entry["correct"].count("1") / len(items)
    share = entry["accuracy"]
    assert entry["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / (len(items) - 1)))
    assert entry["centred"] == pytest.approx((share - 0.5) / 0.5)
    assert len(entry["chosen"]) == len(items) and entry["version"].startswith("2.")
    assert entry["data"].startswith("xxh3:") and entry["seconds"] > 0 and entry["cut_to_context"] > 0
    assert (entry["answers_cut"], entry["spans_moved_back"]) == (0, 1)  # of one item all choices are equal


def test_fewer_questions_and_other_examples(tiny_run, bundle, tmp_path):
    found = put(tiny_run, bundle, tmp_path / "r.json", tasks="arc_easy", max_per_task=4, num_fewshot=2)
    entry = found.results["tasks"]["arc_easy"]
    assert (entry["count"], entry["shots"]) == (4, 2)
    entry = put(tiny_run, bundle, tmp_path / "r.json", tasks="arc_easy", max_per_task=4).results["tasks"]["arc_easy"]
    assert entry["shots"] == 3  # ten asked for, three others are there
    entry = put(tiny_run, bundle, tmp_path / "r.json", tasks="arc_easy", max_per_task=1).results["tasks"]["arc_easy"]
    assert (entry["shots"], entry["stderr"]) == (0, None)


def test_results_go_beside_the_run(tiny_run, bundle, tmp_path):
    run = shutil.copytree(tiny_run.run, tmp_path / "run")
    cfg = TasksConfig(checkpoint=str(run), tasks="copa,arc_easy", bundle=str(bundle), device="cpu")
    assert evaluate_tasks.run(cfg).output == run / "results_step_00000007_copa+arc_easy.json"


def test_baselines_of_the_bundle_are_told_where_they_differ(tiny_run, tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\ncopa,50\ncommonsense_qa,40.3\n")
    tasks = put(tiny_run, folder, tmp_path / "r.json", tasks="copa,commonsense_qa").results["tasks"]
    assert "baseline_in_bundle" not in tasks["copa"]
    assert tasks["commonsense_qa"]["baseline_in_bundle"] == pytest.approx(0.403)
    assert tasks["commonsense_qa"]["baseline"] == 0.2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tasks": "coppa"}, "coppa"),
        ({"tasks": "hellaswag"}, "no data of hellaswag"),
        ({"bundle": "nowhere"}, "no task data at nowhere"),
        ({"tokenizer": "char"}, ""),
    ],
)
def test_wrong_settings(tiny_run, bundle, tmp_path, settings, said):
    with pytest.raises((ConfigError, DataError)) as error:
        put(tiny_run, bundle, tmp_path / "r.json", **settings)
    assert said in error.value.message
    assert not (tmp_path / "r.json").exists()


def test_compare_two_files(tiny_run, bundle, tmp_path):
    for name, shots in (("a", 0), ("b", 3)):
        put(tiny_run, bundle, tmp_path / f"{name}.json", tasks="arc_easy,copa", num_fewshot=shots)
    found = compare_results.run(tmp_path / "a.json", tmp_path / "b.json")
    assert [row.name for row in found.rows] == ["arc_easy", "copa"]
    assert "both are results of the same weights" in found.notes
    (tmp_path / "no.json").write_text("[]")
    for other in ("no.json", "missing.json"):
        with pytest.raises(DataError, match=other):
            compare_results.run(tmp_path / "a.json", tmp_path / other)


def test_download(tmp_path, monkeypatch):
    asked = []

    def fetch(folder, *, url, sha256, progress):
        asked.append((url, sha256))
        progress(1, 2)
        return write_bundle(folder)

    monkeypatch.setattr(bundle_archive, "fetch", fetch)
    lines = []
    found = download_bundle.run(BundleConfig(folder=str(tmp_path / "a")), reporter=Reporter(say=lines.append))
    assert found.files == len(ITEMS) and not lines
    download_bundle.run(
        BundleConfig(folder=str(tmp_path / "b"), url="http://x/y.zip"), reporter=Reporter(say=lines.append)
    )
    assert "no SHA-256" in lines[0]
    assert asked == [(bundle_archive.URL, bundle_archive.SHA256), ("http://x/y.zip", None)]


@pytest.mark.parametrize(
    "stored",
    [{"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", None]}}, {"tokenizer_class": 5}, [1]],
)
def test_a_chat_template_of_a_tokenizer_that_does_not_open(stored, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stored))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    with pytest.raises(ConfigError, match="cannot be opened for its chat template"):
        evaluate_tasks._chat_tokenizer(tmp_path)
    assert not (tmp_path / "canary").exists()


def test_a_checkpoint_is_looked_for_before_any_question(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_tasks.chat_tasks, "prepare", lambda *_: pytest.fail("questions were fetched"))
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(CheckpointError):
            evaluate_tasks.run(TasksConfig(checkpoint=str(path), tasks=("chatcore",)))
