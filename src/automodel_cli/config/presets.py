"""Configurations to start from: the files of ``configs/``, shipped with the package, and filled in as text.

They are edited line by line, so that their comments stay.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from automodel_cli.config.problems import did_you_mean
from automodel_cli.config.yaml_tree import resolve_scalar
from automodel_cli.errors import ConfigError

_FOLDER = Path(__file__).parent / "presets"
PRESETS = {
    "gpt2-small": "gpt2_124m",
    "gpt2-small-muon": "gpt2_124m_muon",
    "nanogpt": "nanogpt_pretrain",
    "depth": "depth",
    "shakespeare-char": "shakespeare_char",
    "finetune-gpt2": "finetune_gpt2",
    "llama-1b": "llama_1b",
    "megatron-gpt2": "megatron_pretrain_gpt2",
    "quickstart": "quickstart",
}
"""Name to the file's, which may be given as well."""


def preset_text(name: str) -> str:
    """The YAML of a preset.

    Raises:
        ConfigError: there is none of that name.
    """
    stem = PRESETS.get(name, name)
    if stem not in PRESETS.values():
        raise ConfigError(f"there is no preset {name!r}{did_you_mean(name, PRESETS)}", f"presets: {', '.join(PRESETS)}")
    return (_FOLDER / f"{stem}.yaml").read_text(encoding="utf-8")


def describe_presets() -> dict[str, str]:
    """The first line of each preset, which says what it trains."""
    return {name: preset_text(name).partition("\n")[0].removeprefix("# ") for name in PRESETS}


def filled_in(name: str, output: str, data: str | None, validation: str | None, vocabulary: int | None) -> str:
    """A preset's text for a file ``output``, with what is known of the data.

    Args:
        data, validation: what to train and validate on. With ``data`` alone there is no validation.
        vocabulary: ids of the data's tokenizer.
    """
    stem = PRESETS.get(name, name)
    text = preset_text(name).replace(f"configs/{stem}.yaml", output)
    key = "paths" if re.search(r"^  paths:", text, re.MULTILINE) else "file_pattern"
    text = _set(text, "checkpoint", "checkpoint_dir", f"checkpoints/{Path(output).stem}")
    if data is not None:
        text = _set(text, "dataset", key, data)
        if validation:
            text = _set(text, "validation_dataset", key, validation)
        else:
            text = re.sub(r"^validation_dataset:.*\n(?:[ #].+\n)+\n?", "", text, flags=re.MULTILINE)
    if vocabulary is not None:
        text = _set(text, "model", "vocab_size", vocabulary)
    return text


def _set(text: str, section: str, key: str, value: str | int) -> str:
    """Give a key of a section another value, in place; without a comment, which spoke of the old one."""
    line = rf"(^{section}:.*\n(?:(?:[ #].*)?\n)*?  {key}: ).*$"
    return re.sub(line, lambda found: f"{found[1]}{_scalar(value)}", text, count=1, flags=re.MULTILINE)


def _scalar(value: str | int) -> str:
    text = str(value)
    if re.fullmatch(r"[\w/][\w./*-]*", text) and isinstance(resolve_scalar(text), type(value)):
        return text
    return json.dumps(text.replace("$", "$$"))
