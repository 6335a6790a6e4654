"""Tasks of ``automodel eval``: score a checkpoint, download the data, compare two results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.cli import console, worker
from automodel_cli.cli.argv import Invocation
from automodel_cli.cli.options import Given, command, show_json
from automodel_cli.config import yaml_tree
from automodel_cli.config.schema.results import BundleConfig, CompareOptions, EvaluateOptions, TasksConfig
from automodel_cli.errors import AutomodelError
from automodel_cli.text import decimal

COLUMNS = ("task", "shots", "items", "accuracy", "+/-", "chance", "centred", "items/s")


def names_tasks(config: Path | None) -> bool:
    """Whether a YAML file asks for tasks; a file that cannot be read is complained about later."""
    if config is None:
        return False
    try:
        given, _ = yaml_tree.read_file(config)
    except AutomodelError:
        return False
    return not {"tasks", "harness"}.isdisjoint(given)


def run(given: Given, invocation: Invocation) -> int:
    """Put tasks to a checkpoint, in as many processes as the launch flags say."""
    cfg = given.load(TasksConfig)
    # From the command line alone: a file may be a stranger's.
    options = Given(given.values, names=given.names).load(EvaluateOptions)
    worker.starting("eval: loading PyTorch ...", needs=cfg.checkpoint)
    launcher = Reporter() if cfg.as_json else Reporter(say=console.say)
    if invocation.wants_processes:
        from automodel_cli.recipes import launch

        code = launch.run(None, invocation.launch, invocation.of_workers, reporter=launcher)
        if code is not None:
            return code
    from automodel_cli.recipes.evaluation import tasks as recipe

    if worker.rank() > 0 or cfg.as_json:
        result = recipe.run(cfg, options=options)
        if cfg.as_json and worker.rank() == 0:
            show_json(result.results)
        return 0
    with console.reporter("evaluating") as reporter:
        result = recipe.run(cfg, reporter=reporter, options=options)
    show(result.results)
    say_where(result)
    return 0


def say_where(result: Any) -> None:
    """The file that holds the results, or why there is none."""
    if result.output is not None:
        console.say(f"wrote {result.output}")
        return
    folder = result.results["checkpoint"]["path"]
    console.say(f"no file was written: {folder} is not in a run or export of automodel that can be written to")
    console.say("give --output FILE to keep these results")


def show(results: Mapping[str, Any]) -> None:
    """The tables of a results file."""
    title = results["checkpoint"]["path"]
    if results.get("tasks"):
        rows = [_task_row(name, entry) for name, entry in results["tasks"].items()]
        console.table(title, COLUMNS, [*rows, *_mean_rows(results["means"])], right=COLUMNS[1:])
    if results.get("missing"):
        console.say(f"no data for: {', '.join(results['missing'])}")
    for name, reason in results.get("not_run", {}).items():
        console.say(f"not run: {name}: {reason}")
    for kind, task in (("harness", "harness task"), ("judged", "judged suite")):
        if rows := _metric_rows(results.get(kind, {})):
            headings = (task, "metric", "value", "+/-")
            console.table(title, headings, rows, right=headings[2:])
    for name, entry in results.get("judged", {}).items():
        console.say(f"answers to {name}: {entry['answers']}")


def _task_row(name: str, entry: Mapping[str, Any]) -> list[str]:
    return [
        name,
        str(entry["shots"]),
        f"{entry['count']:,}",
        f"{entry['accuracy']:.4f}",
        decimal(entry["stderr"]),
        f"{entry['baseline']:.3f}",
        f"{entry['centred']:.4f}",
        f"{entry['items_per_s']:,.1f}",
    ]


def _mean_rows(means: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    if "chatcore" in means:
        rows.append(_mean_row("ChatCORE", means["chatcore"]))
    if "core" in means:
        rows.append(_mean_row("CORE", means["core"]))
    if "gauntlet" in means:
        gauntlet = means["gauntlet"]
        rows += [_mean_row(f"gauntlet: {name}", part) for name, part in gauntlet["categories"].items()]
        rows.append(_mean_row("gauntlet: mean of categories", gauntlet))
    return rows


def _mean_row(name: str, mean: Mapping[str, Any]) -> list[str]:
    over = f"over {mean['tasks']} of {mean['of']} tasks"
    return [f"{name}, {over}", "", "", "", decimal(mean.get("stderr")), "", decimal(mean["score"]), ""]


def _metric_rows(entries: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    return [
        [name, metric, decimal(found["value"]), decimal(found["stderr"])]
        for name, entry in entries.items()
        for metric, found in entry["metrics"].items()
    ]


@command(
    BundleConfig,
    file=False,
    examples=("automodel eval download-bundle", "automodel eval download-bundle --folder /data/eval_bundle"),
)
def download_bundle(cfg: BundleConfig) -> int:
    """Download the data of the in-context tasks and check its hash."""
    return _fetch(cfg)


def _fetch(cfg: BundleConfig) -> int:
    from automodel_cli.recipes.evaluation import download_bundle as recipe

    with console.reporter("downloading") as reporter:
        found = recipe.run(cfg, reporter=reporter)
    console.say(f"{found.files} files of task data in {found.folder}")
    return 0


def download(given: Given) -> int:
    """``eval --download-bundle``, the older spelling."""
    old = {"folder": "bundle", "url": "bundle_url", "sha256": "bundle_sha256"}
    values = {new: given.values[key] for new, key in old.items()}
    names = {new: given.names[key] for new, key in old.items()}
    return _fetch(Given(values, names=names).load(BundleConfig))


@command(CompareOptions, file=False, arguments=("files",), examples=("automodel eval compare a.json b.json",))
def compare(cfg: CompareOptions) -> int:
    """Compare two results files: what differs, and whether by more than chance."""
    from automodel_cli.recipes.evaluation import compare_results as recipe

    found = recipe.run(Path(cfg.files[0]), Path(cfg.files[1]))
    if cfg.as_json:
        show_json(asdict(found))
        return 0
    headings = ("score", "A", "B", "B - A", "+/-", "p", "")
    console.say(f"A: {found.a}")
    console.say(f"B: {found.b}")
    console.table("", headings, [_difference_row(row) for row in found.rows], right=headings[1:6])
    for note in found.notes:
        console.say(note)
    return 0


def _difference_row(row: Any) -> list[str]:
    p = "" if row.p is None else "<0.0001" if row.p < 1e-4 else f"{row.p:.4f}"
    verdict = "" if row.p is None or row.p >= 0.05 else ("B better" if row.better else "A better")
    return [
        row.name,
        f"{row.a:.4f}",
        f"{row.b:.4f}",
        f"{row.b - row.a:+.4f}",
        decimal(row.stderr),
        p,
        verdict,
    ]
