"""Small local copies of the tasks' data sets, with the same columns."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def smoltalk(count: int) -> list[dict[str, Any]]:
    """Multi-turn conversations, some with a system message."""
    system = {"role": "system", "content": "Be brief."}
    turns = [
        [
            *([system] if k % 3 == 0 else []),
            {"role": "user", "content": f"Tell me about {k}."},
            {"role": "assistant", "content": f"{k} is a number. " * (1 + k % 4)},
            {"role": "user", "content": "And <|im_end|>?"},
            {"role": "assistant", "content": "That is only text."},
        ]
        for k in range(count)
    ]
    return [{"messages": messages, "source": "made-up"} for messages in turns]


def mmlu(count: int, *, nested: bool = False) -> list[dict[str, Any]]:
    """Multiple choice; ``nested`` as the configuration auxiliary_train has it."""
    rows = [
        {"question": f"What is {k} + 1?", "subject": "", "choices": [str(k + n) for n in range(4)], "answer": 1}
        for k in range(count)
    ]
    return [{"train": row} for row in rows] if nested else rows


def gsm8k(count: int) -> list[dict[str, Any]]:
    """Word problems with the calculator's annotations."""
    return [
        {
            "question": f"Ann has {k} apples and buys {k}. How many has she?",
            "answer": f"She has {k}+{k}=<<{k}+{k}={2 * k}>>{2 * k} apples.\n#### {2 * k}",
        }
        for k in range(count)
    ]


def arc(count: int) -> list[dict[str, Any]]:
    """Multiple choice with labels, in some rows numbers."""
    return [
        {
            "id": str(k),
            "question": "Which is a star?",
            "choices": {"text": ["Moon", "Sun", "Mars"], "label": ["1", "2", "3"] if k % 2 else ["A", "B", "C"]},
            "answerKey": "2" if k % 2 else "B",
        }
        for k in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    return str(path)


def task_mixture(folder: Path) -> str:
    """The README's three tasks and a fourth, in files of both kinds, as a mixture's YAML."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "smoltalk": write_parquet(folder / "smoltalk.parquet", smoltalk(40)),
        "smoltalk_val": write_parquet(folder / "smoltalk_val.parquet", smoltalk(9)),
        "mmlu": write_parquet(folder / "mmlu.parquet", mmlu(20, nested=True)),
        "mmlu_val": write_jsonl(folder / "mmlu_val.jsonl", mmlu(5)),
        "gsm8k": write_jsonl(folder / "gsm8k.jsonl", gsm8k(10)),
        "arc": write_jsonl(folder / "arc.jsonl", arc(10)),
    }
    (folder / "mixture.yaml").write_text(
        f"""\
seed: 1
tasks:
  smoltalk: {{dataset: {files["smoltalk"]}, val_dataset: {files["smoltalk_val"]}, max_examples: 30,
             max_val_examples: 6}}
  mmlu_auxiliary: {{dataset: {files["mmlu"]}, val_dataset: {files["mmlu_val"]}}}
  gsm8k: {{dataset: {files["gsm8k"]}, epochs: 2}}
  stars: {{task: arc, dataset: {files["arc"]}, val_fraction: 0.2}}
"""
    )
    return str(folder / "mixture.yaml")
