"""README, guides and CONTRIBUTING stay true: commands parse, configurations load, links and paths lead somewhere.

Every fenced line that begins with ``automodel`` is given to the command line itself. The recipes are replaced by a
stand-in, so a line passes when its flags, its configuration keys and their values are accepted, and costs nothing.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from automodel_cli import recipes
from automodel_cli.cli import app, argv, worker
from automodel_cli.config.load import load_config
from automodel_cli.config.schema import pretrain as schema
from automodel_cli.config.schema.chat import MixtureConfig
from automodel_cli.config.schema.pipeline import PipelineConfig
from automodel_cli.config.schema.sweep import SweepRunConfig

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RECIPES = (
    "preprocess",
    "train_tokenizer",
    "verify",
    "pretrain",
    "evaluate",
    "inspect_ckpt",
    "inspect_data",
    "plot",
    "generate",
)
SHELL = ("bash", "console", "sh")
# Fenced lines that show an error on purpose, by a part of them and by what is then said.
MISTAKES = {
    "--model.n_layr 4": "did you mean n_layer?",
    "--model.n_layers 24": "did you mean n_layer?",
    "--model.n_layers 4": "did you mean n_layer?",
    "--learning_rate=6e-4": "nanoGPT's name, here: optimizer.lr",
    "--micro-batch-size 4": "Megatron-LM's name, here: step_scheduler.local_batch_size",
}


class Reached(BaseException):
    """The recipe was called: the command line had been accepted."""


@dataclass(frozen=True)
class Command:
    """One ``automodel`` line of a page."""

    page: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {shlex.join(self.words)}"


def fences(page: Path, *languages: str) -> list[str]:
    """The content of a page's fenced blocks of these languages."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def command_lines(block: str) -> list[str]:
    """The lines a user types: all of a script, those behind ``$`` where output stands between them."""
    joined = re.sub(r"\\\n\s*", " ", block)
    lines = [line.strip() for line in joined.splitlines()]
    if any(line.startswith("$ ") for line in lines):
        return [line[2:] for line in lines if line.startswith("$ ")]
    return lines


def automodel_words(line: str) -> list[tuple[str, ...]]:
    """The arguments of each ``automodel`` call in a line; what other programs do there is not our business."""
    line = line.replace("$(which automodel)", "/usr/bin/automodel")
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.wordchars += ":"
    lexer.commenters = "#"
    calls: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;<>()"):
            calls.append([])
        else:
            calls[-1].append(word)
    return [tuple(call[1:]) for call in calls if call and call[0] == "automodel"]


COMMANDS = [
    Command(page, words)
    for page in PAGES
    for block in fences(page, *SHELL)
    for line in command_lines(block)
    for words in automodel_words(line)
]
YAML_BLOCKS = [(page, block) for page in PAGES for block in fences(page, "yaml")]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory) -> Path:
    """A folder with configs/ and every configuration that a page spells out under a name (``# tiny.yaml``)."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "cfg.yaml").symlink_to(ROOT / "configs/gpt2_124m.yaml")  # of the examples in the help
    for _, block in YAML_BLOCKS:
        if name := re.match(r"# (\w+\.yaml)\n", block):
            target = folder / name[1]
            assert not target.exists() or target.read_text(encoding="utf-8") == block, f"two different {name[1]}"
            target.write_text(block, encoding="utf-8")
    return folder


@pytest.fixture
def stand_ins(monkeypatch, workplace):
    """Recipes that only say that they were reached."""

    def reached(*_, **__):
        raise Reached

    for found in pkgutil.walk_packages(recipes.__path__, "automodel_cli.recipes."):
        recipe = importlib.import_module(found.name)
        if hasattr(recipe, "run"):
            monkeypatch.setattr(recipe, "run", reached)
    monkeypatch.setattr(worker, "starting", lambda line, needs=None: None)  # runs of pages are not there
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("WANDB_ENTITY", "someone")


# ------------------------------------------------------------------------------------------- commands


def examples(entries: dict[str, app.Entry] = app.COMMANDS) -> list[tuple[str, ...]]:
    """The examples that ``--help`` shows, of all commands."""
    own = [app.load_command(name, entry).examples for name, entry in entries.items() if entry.module]
    lines = [line for lines in own for line in lines]
    found = [words for line in lines for words in automodel_words(line)]
    return found + [words for entry in entries.values() for words in examples(entry.commands) if entry.commands]


@pytest.mark.parametrize("words", examples(), ids=shlex.join)
def test_examples_of_the_help_are_accepted(words, stand_ins, capsys):
    test_it_is_accepted(Command(ROOT / "README.md", words), stand_ins, capsys)


def test_there_are_commands_to_look_at():
    assert len(COMMANDS) > 40
    assert {command.words[0] for command in COMMANDS} >= set(app.COMMANDS) - {"quickstart", "pretrain"}


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_it_is_accepted(command, stand_ins, capsys):
    said = next((said for part, said in MISTAKES.items() if part in shlex.join(command.words)), None)
    if said is not None:
        assert app.run(command.words) == 2
        assert said in capsys.readouterr().err
        return
    if command.words[0] in ("help", "explain"):  # pages: no recipe
        assert app.run(command.words) == 0
        return
    with pytest.raises(Reached):
        code = app.run(command.words)
        pytest.fail(f"exit code {code}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_configurations_in_prose_are_there(page):
    for name in re.findall(r"configs/\w+\.yaml", page.read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize(
    ("page", "block"), YAML_BLOCKS, ids=lambda value: value.stem if isinstance(value, Path) else ""
)
def test_yaml_is_a_part_of_a_valid_configuration(page, block, tmp_path, monkeypatch):
    """A block that is only a section is completed from a shipped configuration."""
    monkeypatch.setenv("WANDB_ENTITY", "someone")
    if "base" in yaml.safe_load(block):  # of automodel sweep run
        (tmp_path / "sweep.yaml").write_text(block, encoding="utf-8")
        load_config(SweepRunConfig, tmp_path / "sweep.yaml")
        return
    if "steps" in yaml.safe_load(block):  # of automodel run
        (tmp_path / "pipeline.yaml").write_text(block, encoding="utf-8")
        load_config(PipelineConfig, tmp_path / "pipeline.yaml")
        return
    if "tasks" in yaml.safe_load(block):  # of automodel preprocess chat
        (tmp_path / "mixture.yaml").write_text(block, encoding="utf-8")
        load_config(MixtureConfig, tmp_path / "mixture.yaml")
        return
    whole = yaml.safe_load((ROOT / "configs/gpt2_124m.yaml").read_text(encoding="utf-8"))
    text = {**whole, **yaml.safe_load(block)}
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    load_config(schema.PretrainConfig, tmp_path / "whole.yaml")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_compiles_and_its_imports_are_there(page):
    for block in fences(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("automodel_cli"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), node.module


def test_make_targets_are_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = {name for block in fences(page, *SHELL) for name in re.findall(r"^make ([a-z-]+)", block, re.M)}
        named |= set(re.findall(r"`make ([a-z-]+)`", text)) | set(re.findall(r"^    make ([a-z-]+)", text, re.M))
        assert named <= targets, page


# ------------------------------------------------------------------------------------- links and paths


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get where it is shown."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_paths_in_backticks_are_there(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:src|docs|tests|benchmarks|configs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_readme_lists_every_room():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^  (\w+)/ ", text, re.MULTILINE))
    rooms = {path.parent.name for path in (ROOT / "src/automodel_cli").glob("*/__init__.py")}
    assert listed == rooms
    tops = set(re.findall(r"^(\w+)/ ", text, re.MULTILINE))
    assert tops and all((ROOT / name).is_dir() for name in tops)


def test_every_guide_is_listed_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for guide in (ROOT / "docs").rglob("*.md"):
        assert guide.relative_to(ROOT).as_posix() in text, guide.name


def test_pictures_are_small():
    for picture in (ROOT / "docs/images").iterdir():
        assert picture.stat().st_size < 150_000, picture.name


# ------------------------------------------------------------------------------------- what else is said


def test_every_dependency_is_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "all" for line in lines]
    for line in (*project["dependencies"], *extras):
        name = re.match(r"[\w-]+", line)[0]
        if name != "automodel-cli":
            assert re.search(rf"\b{re.escape(name)}\b", text), f"{name} is not in docs/dependencies.md"


def test_every_exit_code_is_documented():
    text = (ROOT / "docs/guides/resume_and_checkpoints.md").read_text(encoding="utf-8")
    for code in (0, 1, app.WRONG_USAGE, 75, app.INTERRUPTED):
        assert re.search(rf"^\| {code} \|", text, re.MULTILINE), code


def test_launch_flags_are_understood_wherever_they_stand():
    """What the NeMo guide says of that form."""
    line = ["--nproc-per-node", "8", "/usr/bin/automodel", "pretrain", "llm", "-c", "cfg.yaml"]
    assert argv.parse_argv(line).arguments == ("pretrain", "llm", "-c", "cfg.yaml")
