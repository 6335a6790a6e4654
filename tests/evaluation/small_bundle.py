"""Task data of our own, in the published layout: a few questions of each kind, with the odd cases in them.

Also a script: ``python tests/evaluation/small_bundle.py`` writes ``tests/golden/icl_prompts/*.txt`` anew.
"""

# ruff: noqa: E501
from __future__ import annotations

import json
from pathlib import Path

ITEMS = {
    # multiple choice, 10 worked examples, delimiter "\nAnswer: "
    "world_knowledge/arc_easy": [
        {"query": f"Question: Which number comes after {n}?", "choices": [str(n + k) for k in (2, 1, 0, 3)], "gold": 1}
        for n in range(3, 20)
    ],
    # multiple choice without worked examples; two equal choices, and choices of different length
    "commonsense_reasoning/copa": [
        {"query": "The glass fell, so", "choices": ["it broke.", "it sang a long and very sad song."], "gold": 0},
        {"query": "It rained, therefore", "choices": ["the street was wet.", "the street was dry."], "gold": 0},
        {"query": "He was tired, so", "choices": ["he slept.", "he slept."], "gold": 0},
        {"query": "The café was closed – so", "choices": ["we went home.", "мы остались."], "gold": 1},
    ],
    # multiple choice with letters, 10 asked for and fewer there
    "commonsense_reasoning/commonsense_qa": [
        {"query": f"Question: Where is {thing}?\nChoices:\nA. here\nB. there\nAnswer:", "choices": ["A", "B"], "gold": gold}
        for thing, gold in (("the cat", 0), ("the sun", 1), ("the sea", 1))
    ],
    "language_understanding/winogrande": [
        {"context_options": ["Ann saw Eve because Ann", "Ann saw Eve because Eve"], "continuation": "was near.", "gold": 1},
        {"context_options": ["The cup is in the bag as the cup", "The cup is in the bag as the bag"], "continuation": "is big.", "gold": 1},
        {"context_options": ["Tom paid Jim after Tom", "Tom paid Jim after Jim"], "continuation": "got the money.", "gold": 0},
    ],
    # language modelling: white space at the ends of contexts, answers of one and of several tokens
    "symbolic_problem_solving/bigbench_repeat_copy_logic": [
        {"context": f"Say {word} {count} times: {word}", "continuation": " ".join([word] * (count - 1))}
        for word, count in (("no", 3), ("yes", 4), ("a", 6), ("aaaa", 3), ("zzz", 5), ("o o", 2))
    ],
    "symbolic_problem_solving/simple_arithmetic_withspaces": [
        {"context": f" {a} + {b} = ", "continuation": f" {a + b}"} for a in range(2, 6) for b in range(3)
    ],
    # generation with a chain of thought, and with aliases
    "symbolic_problem_solving/gsm8k": [
        {"context": f"Ann has {a} pens and gets {b}. How many pens has she?", "chain_of_thought": f"She has {a} + {b} = {a + b} pens.", "answer": str(a + b)}
        for a, b in ((1, 2), (3, 4), (5, 1), (2, 2))
    ],
    "world_knowledge/triviaqa_small": [
        {"context": f"Question: What colour is {thing}?\nAnswer:", "answer": colour, "aliases": [colour, f"the {colour}"]}
        for thing, colour in (("snow", "White"), ("grass", "Green"), ("coal", "Black"), ("the sky", "Blue"))
    ],
}  # fmt: skip

GOLDEN = Path(__file__).parents[1] / "golden" / "icl_prompts"
SHOWN = {
    "multiple_choice": ("arc_easy", 2),
    "schema": ("winogrande", 1),
    "language_modeling": ("simple_arithmetic_withspaces", 2),
    "generation": ("gsm8k_cot", 2),
}


def write_bundle(folder: Path, *, layout: str = "eval_data") -> Path:
    """The questions as files; ``layout`` "" puts the categories directly into the folder."""
    for name, items in ITEMS.items():
        path = folder / layout / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(item, ensure_ascii=False) for item in items]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def golden_text(kind: str) -> str:
    """Three rendered questions of one kind as a page of text; a space at a line's end is shown as an underscore."""
    from automodel_cli.evaluation.icl.prompts import example_numbers, ordered, render
    from automodel_cli.evaluation.icl.tasks import TASKS

    name, shots = SHOWN[kind]
    task = TASKS[name]
    items = ordered(ITEMS[task.file.removesuffix(".jsonl")])
    blocks = []
    for number in range(3):
        examples = [items[other] for other in example_numbers(len(items), number, shots)]
        for place, prompt in enumerate(render(task, items[number], examples)):
            lines = "".join(prompt).split("\n")
            shown = [
                line if line == line.rstrip() else line.rstrip() + "_" * (len(line) - len(line.rstrip()))
                for line in lines
            ]
            blocks.append(f"=== {name}, question {number}, prompt {place}\n" + "\n".join(shown) + "\n<end>\n")
    return "\n".join(blocks)


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for kind in SHOWN:
        (GOLDEN / f"{kind}.txt").write_text(golden_text(kind), encoding="utf-8")
