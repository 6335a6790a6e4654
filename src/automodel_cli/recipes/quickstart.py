"""The whole pipeline on text that every machine has: the source files of Python's standard library.

Each step is the command a user would type, run as a process of its own and shown before it runs: a tokenizer, token
files, a small GPT (about three minutes on two cores), its score beside a bigram model's, and reports of it all.
"""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.config.presets import preset_text
from automodel_cli.corpus.tokenizers.base import TOKENIZER_FILE
from automodel_cli.errors import AutomodelError
from automodel_cli.files import write_text
from automodel_cli.json_files import FileModel, FiniteFloat, read_model
from automodel_cli.launch.jobs import run_here
from automodel_cli.plain_text import command_line, for_shell
from automodel_cli.text import decimal

PROMPT = "def read_lines(path):"


@dataclass(frozen=True)
class Step:
    """One command of the tour: its arguments after ``automodel``, and why it is run."""

    why: str
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """The line a user would type."""
        return command_line(["automodel", *self.arguments])


class _Bigram(FileModel):
    loss: FiniteFloat | None


class _Scores(FileModel):
    """What the report shows of ``results.json``; null where a number was not finite."""

    loss: FiniteFloat | None
    perplexity: FiniteFloat | None
    bits_per_byte: FiniteFloat | None
    bigram: _Bigram = _Bigram(loss=None)


# Words are split first and filled in after, so that a path with a space stays one argument.
_TOUR = (
    (
        "Train a tokenizer of 4,096 entries",
        "preprocess tokenizer --dataset {source} --vocab-size 4096 --output-dir {output}/bpe",
    ),
    (
        "Turn the text into token files, a twentieth of it for validation",
        "preprocess nanogpt --dataset {source} --tokenizer {output}/bpe --val-fraction 0.05 --output-dir {output}/data",
    ),
    (
        "Train a small GPT on them",
        "pretrain llm -c {config} --dataset.file_pattern={output}/data/dataset.bin"
        " --validation_dataset.file_pattern={output}/data/val.bin --checkpoint.checkpoint_dir={output}/run",
    ),
    (
        "Score it on the validation tokens, beside a bigram model",
        "eval {output}/run --data {output}/data/val.bin --bigram {output}/data/dataset.bin"
        " --output {output}/results.json",
    ),
    ("Look at the checkpoints", "inspect-ckpt {output}/run"),
    ("Draw the loss curve", "plot {output}/run --output {output}/loss.png"),
    (
        "Generate code from a prompt",
        "generate {output}/run --prompt {prompt} --max-new-tokens 80 --temperature 0.8 --top-k 50 --seed 1",
    ),
    ("Write all of it as a page for the browser", "report {output}/run --output {output}/report.html"),
)


def steps(config: Path, output: Path, *, source: str, extra: Sequence[str] = ()) -> list[Step]:
    """The commands of the tour; ``extra`` are further arguments of ``pretrain llm``."""
    values = {"config": config, "output": output, "source": source, "prompt": PROMPT}
    tour = []
    for why, template in _TOUR:
        words = [word.format(**values) for word in template.split()]
        tour.append(Step(why, (*words, *extra) if words[0] == "pretrain" else tuple(words)))
    return tour


def run(
    config: Path | None,
    output: Path,
    *,
    source: str | None = None,
    extra: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Run the tour; returns the report's path. A tour that was interrupted goes on where it stopped.

    Args:
        config: of the training run; None: the preset, written into ``output`` where it is not there yet.

    Raises:
        AutomodelError: a step failed (its own message is above), or the configuration is not there.
    """
    config = config or _written_preset(output)
    if not config.is_file():
        raise AutomodelError(f"{config} does not exist", "leave --config out, or name a file")
    source = source or f"{sysconfig.get_path('stdlib')}/*.py"
    tour = steps(config, output, source=source, extra=extra)
    for number, step in enumerate(tour, 1):
        say(f"\n[{number}/{len(tour)}] {step.why}\n$ {step.command}")
        if _is_done(step, output):
            say("already done")
        else:
            _run_step(step)
    report = output / "report.md"
    write_text(report, report_text(tour, output))
    say(f"\nEverything is in {output}; see {report}.")
    if shutil.which("automodel") is None:
        say(how_to_call())
    return report


def _written_preset(output: Path) -> Path:
    path = output / "quickstart.yaml"
    if not path.exists():
        output.mkdir(parents=True, exist_ok=True)
        write_text(path, preset_text("quickstart"))
    return path


def _is_done(step: Step, output: Path) -> bool:
    """The commands find out themselves what is left to do, but one: a tokenizer is never trained over another."""
    return (
        step.arguments[:2] == ("preprocess", "tokenizer")
        and (output / "bpe" / TOKENIZER_FILE).is_file()  # the last of its files
    )


def _run_step(step: Step) -> None:
    run_here(step.command, step.arguments)


def report_text(tour: Sequence[Step], output: Path) -> str:
    """The report as Markdown: scores, where things are, and the commands that made them."""
    scores = read_model(output / "results.json", _Scores, hint="remove it and run the tour again")
    loss, bigram, bits = (
        decimal(score, none="n/a") for score in (scores.loss, scores.bigram.loss, scores.bits_per_byte)
    )
    perplexity = decimal(scores.perplexity, 2, none="n/a")
    lines = [
        "# Quickstart report",
        "",
        "| validation loss (nats per token) | |",
        "|---|---|",
        f"| this GPT | {loss} |",
        f"| add-alpha bigram model, same tokens | {bigram} |",
        "",
        f"Perplexity {perplexity}, bits per byte {bits}.",
        "",
        "| what | where |",
        "|---|---|",
        "| tokenizer (loads with `transformers.AutoTokenizer`) | bpe/ |",
        "| token files and their manifest | data/ |",
        "| run folder: config, metrics, checkpoints | run/ |",
        "| loss curve | loss.png |",
        "| curves, configuration and events, for the browser | report.html |",
        "| scores | results.json |",
        "",
        "Made by:",
        "",
        *(f"    {step.command}" for step in tour),
        "",
        f"{how_to_call()}",
        "",
    ]
    return "\n".join(lines)


def how_to_call() -> str:
    """Where the program is, for a shell that does not find it."""
    program = Path(sysconfig.get_path("scripts"), "automodel")
    activate = program.with_name("activate")
    put = f"`source {for_shell(activate)}` puts it on PATH" if activate.is_file() else "use the full path"
    return f"If the shell does not find `automodel`, it is at `{for_shell(program)}`; {put}."
