"""Logits of exported folders by whatever transformers the interpreter has: ``python logits_of.py ROOT``.

Writes ``ROOT/logits.json``: the version, and for each folder the logits of fixed ids as a flat list, or its error.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

IDS = torch.arange(24).reshape(2, 12) % 61


def logits(folder: Path) -> list[float] | str:
    """Of one folder."""
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            return model(IDS).logits.flatten().tolist()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    root = Path(sys.argv[1])
    found = {folder.name: logits(folder) for folder in sorted(root.iterdir()) if folder.is_dir()}
    (root / "logits.json").write_text(json.dumps({"version": transformers.__version__, "logits": found}))
