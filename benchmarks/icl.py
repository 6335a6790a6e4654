"""In-context questions per second: our engine against one item at a time, with the same model and answers.

    python benchmarks/icl.py [--bundle DIR] [--items 40] [--threads 1] [--layers 4 --width 256]

Without ``--bundle`` the questions are made up: four choices behind ten worked examples, as arc_easy has them, and a
language-modelling task with ten. The reference is the usual loop: each item's prompts are rendered and tokenised,
padded into one batch, run through the model, and losses are taken from whole logits.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from automodel_cli.batch import Batch
from automodel_cli.corpus.tokenizer import ByteTokenizer, Tokenizer, open_tokenizer
from automodel_cli.errors import AutomodelError
from automodel_cli.evaluation.icl.data import Bundle, TaskData
from automodel_cli.evaluation.icl.prompts import example_numbers, ordered, render
from automodel_cli.evaluation.icl.rows import Encoder, cropped, rows_of
from automodel_cli.evaluation.icl.scores import ask, prepare
from automodel_cli.evaluation.icl.tasks import TASKS, Task
from automodel_cli.evaluation.span_scores import SpanScorer
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.interface import CausalLM

NAMES = ("arc_easy", "piqa", "commonsense_qa", "winograd", "jeopardy")


def made_up(task: Task, count: int) -> TaskData:
    """Questions of nobody's, about as long as those of the task."""
    draw = random.Random(task.name)

    def words(number: int) -> str:
        return " ".join("".join(draw.choices("etaoinshrdlu", k=draw.randrange(2, 8))) for _ in range(number))

    items: list[dict[str, Any]] = []
    for _ in range(count):
        if task.kind == "language_modeling":
            items.append({"context": words(18), "continuation": words(2)})
        elif task.kind == "schema":
            items.append({"context_options": [words(9), words(9)], "continuation": words(6), "gold": 0})
        else:
            choices = [words(draw.randrange(1, 8)) for _ in range(4 if "arc" in task.name else 2)]
            items.append({"query": words(20), "choices": choices, "gold": draw.randrange(len(choices))})
    return TaskData(items, "made up")


@torch.no_grad()
def one_at_a_time(
    model: CausalLM, tokenizer: Tokenizer, task: Task, data: TaskData, limit: int
) -> tuple[list[Any], float]:
    """The reference: answers, and seconds."""
    started = time.perf_counter()
    items = ordered(data.items, limit)
    shots = min(task.shots, len(items) - 1)
    first = tokenizer.bos_id
    assert first is not None
    answers: list[Any] = []
    for number, item in enumerate(items):
        examples = [items[other] for other in example_numbers(len(items), number, shots)]
        prompts = [(first, *tokenizer.encode("".join(prompt))) for prompt in render(task, item, examples)]
        rows = [cropped(row, model.max_seq_len) for row in rows_of(task.kind, prompts)[0]]
        inputs = torch.full((len(rows), max(len(row.ids) for row in rows)), first)
        for place, row in enumerate(rows):
            inputs[place, : len(row.ids)] = torch.tensor(row.ids)
        logits = model(Batch(inputs))
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), inputs[:, 1:].flatten(), reduction="none")
        losses = losses.view(len(rows), -1)
        if task.kind == "language_modeling":
            (row,) = rows
            answers.append(
                bool((logits[0, row.start - 1 : row.end - 1].argmax(-1) == inputs[0, row.start : row.end]).all())
            )
        else:
            means = [losses[place, row.start - 1 : row.end - 1].mean().item() for place, row in enumerate(rows)]
            answers.append(means.index(min(means)))
    return answers, time.perf_counter() - started


def main() -> None:
    """Measure each task, print a table and the ratio over all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        tokenizer: Tokenizer = open_tokenizer("gpt2")
    except AutomodelError:
        tokenizer = ByteTokenizer()
    model = build_gpt2_model(n_layer=options.layers, n_embd=options.width, n_head=4)
    model.materialize("cpu", seed=0)
    model.eval()
    engine = SpanScorer(model)
    assert engine.share
    print(f"GPT-2 of {options.layers} x {options.width}, tokenizer {tokenizer.name}, {options.threads} threads")
    print(f"{'task':<16}{'items':>6}{'one at a time':>16}{'ours':>10}{'ratio':>8}  same answers")
    sums = [0.0, 0.0]
    for name in NAMES:
        task = TASKS[name]
        data = Bundle(options.bundle).load(task) if options.bundle else made_up(task, options.items)
        assert data is not None, f"{name} is not in {options.bundle}"
        reference, plain_s = one_at_a_time(model, tokenizer, task, data, options.items)
        started = time.perf_counter()
        questions = prepare(task, data, Encoder(tokenizer), context=model.max_seq_len, limit=options.items)
        found = ask(questions, engine, tokenizer)
        ours_s = time.perf_counter() - started
        same = sum(one == other for one, other in zip(reference, found.answers, strict=True))
        count = len(reference)
        rates = f"{count / plain_s:>13.1f}/s{count / ours_s:>8.1f}/s{plain_s / ours_s:>7.1f}x"
        print(f"{name:<16}{count:>6}{rates}  {same} of {count}", flush=True)
        sums[0] += plain_s
        sums[1] += ours_s
    print(f"{'all':<16}{'':>6}{sums[0]:>14.1f} s{sums[1]:>8.1f} s{sums[0] / sums[1]:>7.1f}x")


if __name__ == "__main__":
    main()
