"""How often a model answers in the format of a conversation, before and after mid-training.

    python benchmarks/midtraining.py BEFORE AFTER CONVERSATIONS.bin [--questions 300]

BEFORE is the run that AFTER had as ``init_from``: its weights are given the rows of the control tokens as mid-training
gives them. Each question is a validation conversation up to its first answer; the answer is the likeliest tokens, at
most 64. It *ends* if it comes to the end-of-turn token by itself; it *stays in its role* if it also opens no other turn
on the way; it is *right* if it is the answer of the data. Intervals are Wilson's, 95%.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from automodel_cli.assembly.checkpoint import LoadedModel, load_model
from automodel_cli.assembly.initial_weights import init_or_load_weights, known_ids
from automodel_cli.assembly.tokenizer import RunTokenizer
from automodel_cli.corpus.conversations.chatml import END, START
from automodel_cli.corpus.formats.conversation_files import ConversationFile
from automodel_cli.corpus.tokenizers.base import Tokenizer
from automodel_cli.generation.engine import SamplingSettings, generate
from automodel_cli.models.interface import CausalLM

MOST_TOKENS = 64
ROWS = 50
Question = tuple[list[int], list[int]]  # the prompt, and the answer without the end of its turn


def questions(path: Path, most: int) -> list[Question]:
    """The first questions of a file of conversations, each with its answer."""
    file = ConversationFile.open(path)
    found = []
    for row in range(min(most, len(file))):
        ids, learned = file.read(row)
        begin = int(learned.argmax())
        length = int((~learned[begin:].astype(bool)).argmax()) or len(learned) - begin
        found.append((ids[:begin].tolist(), ids[begin : begin + length - 1].tolist()))
    return found


def counted(model: CausalLM, asked: Sequence[Question], tokenizer: Tokenizer) -> tuple[int, int, int]:
    """How many answers end, stay in their role, and are right."""
    special = tokenizer.special_ids()
    settings = SamplingSettings(max_new_tokens=MOST_TOKENS, temperature=0.0, stop_ids=frozenset({special[END]}))
    ended = in_role = right = 0
    for first in range(0, len(asked), ROWS):
        some = asked[first : first + ROWS]
        samples = generate(model, [prompt for prompt, _ in some], settings, usable_ids=tokenizer.vocab_size)
        for (_, answer), (sample,) in zip(some, samples, strict=True):
            ended += sample.stopped
            in_role += sample.stopped and special[START] not in sample.ids
            right += sample.stopped and sample.ids == answer
    return ended, in_role, right


def before_training(after: LoadedModel, source: str) -> CausalLM:
    """The model of ``after`` with the weights that its mid-training began with."""
    assert after.tokenizer is not None
    model = after.model
    known = known_ids(source, model, RunTokenizer(after.tokenizer, after.path / "tokenizer"))
    init_or_load_weights(model, init_from=source, seed=0, device=torch.device("cpu"), known=known)
    return model


def share(count: int, of: int) -> str:
    """``93.3% (90.0 to 95.6)``, with Wilson's interval."""
    z, p = 1.96, count / of
    center, half = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    low, high = ((center + side * half) / (1 + z * z / of) for side in (-1, 1))
    return f"{p:.1%} ({max(0.0, low):.1%} to {min(1.0, high):.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("conversations", type=Path)
    parser.add_argument("--questions", type=int, default=300)
    given = parser.parse_args()
    asked = questions(given.conversations, given.questions)
    loaded = load_model(given.after)
    assert loaded.tokenizer is not None
    after = counted(loaded.model, asked, loaded.tokenizer)
    before = counted(before_training(loaded, given.before), asked, loaded.tokenizer)
    print(f"{len(asked)} questions     {'before':28}after")
    for name, one, other in zip(("ends its turn", "stays in its role", "right"), before, after, strict=True):
        print(f"{name:18}{share(one, len(asked)):28}{share(other, len(asked))}")


if __name__ == "__main__":
    main()
