"""Small chat tasks of our own, with the columns of the public data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_KWARGS = ("num_words", "relation", "keywords")
ROWS: dict[str, list[dict[str, Any]]] = {
    "arc_easy_chat": [
        {
            "id": f"q{n}",
            "question": f"Which of these is number {n}?",
            "choices": {"text": [str(n + k) for k in range(4)], "label": ["A", "B", "C", "D"]},
            "answerKey": "A",
        }
        for n in range(6)
    ],
    "arc_challenge_chat": [
        {
            "id": "q",
            "question": "What is cold?",
            "choices": {"text": ["ice", "fire", "steam"], "label": ["1", "2", "3"]},
            "answerKey": "1",
        }
    ],
    "mmlu_chat": [
        {"question": f"{n} + 1 = ?", "subject": "sums", "choices": [str(n + k) for k in range(4)], "answer": 1}
        for n in range(5)
    ],
    "gsm8k_chat": [
        {"question": f"Ann has {n} pears and gets {n}.", "answer": f"She has <<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n}"}
        for n in range(1, 4)
    ],
    "humaneval_chat": [
        {
            "task_id": f"Own/{n}",
            "prompt": f'def plus_{n}(x: int) -> int:\n    """Add {n} to x."""\n',
            "canonical_solution": f"    return x + {n}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
            "entry_point": f"plus_{n}",
        }
        for n in range(3)
    ],
    "ifeval_chat": [
        {
            "key": 1,
            "prompt": "Write no comma.",
            "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
            "kwargs": [dict.fromkeys(_KWARGS), {"num_words": 40, "relation": "less than", "keywords": None}],
        }
    ],
}


def write_rows(folder: Path, *names: str) -> Path:
    """A ``--chat-data`` folder with the tasks ``names``, or all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or ROWS:
        lines = "".join(json.dumps(row) + "\n" for row in ROWS[name])
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder
