"""CORE's in-context tasks written out as plainly as possible, with transformers, one item at a time.

Nothing of the package is imported here: this is what it is compared with. Rendering follows the published templates
(worked examples of item i by ``random.Random(1234 + i)``, joined by a blank line), scoring is the mean cross-entropy of
whole sequences, computed alone, without padding, caches or batches.
"""

from __future__ import annotations

import json
import random
import re
import string
from pathlib import Path

import torch


def read(path: Path, limit: int | None = None) -> list[dict]:
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    random.Random(1337).shuffle(items)
    return items if limit is None else items[:limit]


def worked_examples(items: list[dict], index: int, shots: int) -> list[dict]:
    others = [number for number in range(len(items)) if number != index]
    return [items[number] for number in random.Random(1234 + index).sample(others, min(shots, len(others)))]


def encode(tokenizer, text: str) -> list[int]:
    return [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def cut(ids: list[int], start: int, context: int) -> tuple[list[int], int]:
    extra = max(0, len(ids) - context)
    return ids[extra:], max(1, start - extra)


@torch.no_grad()
def token_losses(model, ids: list[int], start: int) -> tuple[torch.Tensor, bool]:
    """Losses of ids[start:], and whether each of them was the likeliest."""
    logits = model(torch.tensor([ids])).logits[0].double()
    targets = torch.tensor(ids[start:])
    losses = torch.nn.functional.cross_entropy(logits[start - 1 : -1], targets, reduction="none")
    return losses, bool((logits[start - 1 : -1].argmax(-1) == targets).all())


def shared(left: list[int], right: list[int]) -> int:
    count = 0
    while count < min(len(left), len(right)) and left[count] == right[count]:
        count += 1
    return count


def multiple_choice(model, tokenizer, items, index, shots, delimiter) -> tuple[int, list[float]]:
    prefix = "".join(
        f"{example['query']}{delimiter}{example['choices'][example['gold']]}\n\n"
        for example in worked_examples(items, index, shots)
    )
    item = items[index]
    rows = [encode(tokenizer, f"{prefix}{item['query']}{delimiter}{choice}") for choice in item["choices"]]
    # A choice that is the beginning of the others, or equal to them, is scored from its last token on, as the others.
    start = min(min(shared(rows[0], row), len(row) - 1) for row in rows)
    return lowest(model, [cut(row, start, model.config.n_positions) for row in rows])


def schema(model, tokenizer, items, index, shots, delimiter) -> tuple[int, list[float]]:
    prefix = "".join(
        f"{example['context_options'][example['gold']]}{delimiter}{example['continuation']}\n\n"
        for example in worked_examples(items, index, shots)
    )
    item = items[index]
    rows = [
        encode(tokenizer, f"{prefix}{option}{delimiter}{item['continuation']}") for option in item["context_options"]
    ]
    suffix = min(shared(rows[0][::-1], row[::-1]) for row in rows)
    return lowest(model, [cut(row, len(row) - suffix, model.config.n_positions) for row in rows])


def lowest(model, rows) -> tuple[int, list[float]]:
    means = [token_losses(model, ids, start)[0].mean().item() for ids, start in rows]
    return means.index(min(means)), means


def language_modeling(model, tokenizer, items, index, shots, delimiter) -> tuple[bool, list[float]]:
    prefix = "".join(
        f"{example['context'].strip()}{delimiter}{example['continuation']}\n\n"
        for example in worked_examples(items, index, shots)
    )
    item = items[index]
    without = f"{prefix}{item['context'].strip()}{delimiter}".strip()
    ids = encode(tokenizer, f"{prefix}{item['context'].strip()}{delimiter}{item['continuation']}")
    start = shared(encode(tokenizer, without), ids)
    ids, start = cut(ids, start, model.config.n_positions)
    losses, greedy = token_losses(model, ids, start)
    return greedy, [losses.mean().item()]


def generation(model, tokenizer, items, index, task) -> tuple[bool, str]:
    """``task`` has shots, prefix, delimiter, mark and stops."""
    blocks = [
        f"{task['prefix']}{example['context'].strip()}{task['delimiter']}"
        f"{example.get('chain_of_thought', '').strip()}{task['mark']}{example['answer'].strip()}"
        for example in worked_examples(items, index, task["shots"])
    ]
    item = items[index]
    prompt = "\n".join([*blocks, f"{task['prefix']}{item['context'].strip()}{task['delimiter']}".rstrip()])
    longest = max(
        len(tokenizer(text, add_special_tokens=False)["input_ids"])
        for example in items
        for answer in [example["answer"], *example.get("aliases", [])]
        for text in [
            f"{example['chain_of_thought']}{task['mark']}{answer}" if "chain_of_thought" in example else answer
        ]
    )
    room = longest + (10 if task["mark"] else 0)
    ids = encode(tokenizer, prompt)[-(model.config.n_positions - room) :]
    made = model.generate(
        torch.tensor([ids]),
        max_new_tokens=room,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=tokenizer.eos_token_id,
    )
    text = tokenizer.decode(made[0][len(ids) :], skip_special_tokens=True)
    answer = re.split("|".join(task["stops"]), text)[0] if task["stops"] else text
    answer = answer.split(task["mark"])[-1] if task["mark"] else answer
    accepted = [item["answer"], *item.get("aliases", [])]
    return any(normal(answer).startswith(normal(right)) for right in accepted), text


def normal(text: str) -> str:
    text = "".join(" " if letter in string.punctuation + "‘’´`" else letter for letter in text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
