"""``config.json`` and ``generation_config.json`` on their way out: readable by transformers 4 and 5, and with an end.

rope_parameters          transformers 5: one mapping, or one for each kind of layer
rope_theta,              transformers 4: the same numbers by the names that its families use, written beside them;
rope_scaling, ...        5 reads both and finds them equal
bos_token_id,            of the tokenizer that the model was trained with; without one those of the model's own
eos_token_id,            configuration. ``generate()`` stops at ``eos_token_id`` of generation_config.json.
pad_token_id
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from automodel_cli.checkpoint.storage.step_files import StepWriter
from automodel_cli.corpus.conversations.chat_format import chat_format_of
from automodel_cli.corpus.tokenizer import load_tokenizer
from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import read_json

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")

SpecialIds = Mapping[str, int | None]

# Names of transformers 4 where a family has its own: rotary base and rotated share of a head; base of sliding layers.
_NAMES = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "gpt_neox_japanese": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "modernbert-decoder": {"rope_theta": "global_rope_theta"},
}
_SLIDING = {"modernbert-decoder": "local_rope_theta"}
_PLAIN = frozenset({"rope_theta", "rope_type", "partial_rotary_factor"})


def special_ids(tokenizer_folder: Path | None) -> SpecialIds | None:
    """bos, eos and pad of a tokenizer's folder, None where there is none."""
    if tokenizer_folder is None:
        return None
    tokenizer = load_tokenizer(tokenizer_folder)
    ids = (tokenizer.bos_id, tokenizer.eot_id, tokenizer.pad_id)
    return dict(zip(SPECIAL, ids, strict=True))


def turn_ends(tokenizer_folder: Path | None) -> list[int]:
    """All ids that end what a model says, where its tokenizer knows a chat format: of the text and of a turn."""
    chat = None if tokenizer_folder is None else chat_format_of(load_tokenizer(tokenizer_folder))
    return [] if chat is None else sorted(chat.stop_ids)


def complete(config: Mapping[str, Any], ids: SpecialIds | None) -> dict[str, Any]:
    """A ``config.json`` with the rotary positions in both spellings and the tokenizer's special ids."""
    return {**config, **rotary_of_4(config), **_special(config, ids, config.get("vocab_size"))}


def write(
    config: Mapping[str, Any], ids: SpecialIds | None, writer: StepWriter, place: str, ends: Sequence[int] = ()
) -> None:
    """Write both files of a model of ours into ``place`` (``""`` or a folder with a slash).

    ``ends``: ids at which generation ends, where these are more than ``ids`` has.
    """
    whole = complete(config, ids)
    writer.write_json(place + CONFIG, whole)
    known = {key: whole[key] for key in SPECIAL if whole.get(key) is not None}
    writer.write_json(place + GENERATION_CONFIG, known | _ending(ends))


def amend(ids: SpecialIds | None, writer: StepWriter, place: str, ends: Sequence[int] = ()) -> None:
    """Complete the files that transformers has just written into ``place``."""
    config = complete(read_json(writer.folder / (place + CONFIG), CheckpointError), ids)
    writer.write_json(place + CONFIG, config)
    path = writer.folder / (place + GENERATION_CONFIG)
    if path.is_file():
        generation = read_json(path, CheckpointError)
        special = _special(generation, ids, config.get("vocab_size"))
        writer.write_json(place + GENERATION_CONFIG, {**generation, **special, **_ending(ends)})


def _ending(ends: Sequence[int]) -> dict[str, Any]:
    return {"eos_token_id": list(ends)} if len(ends) > 1 else {}


def rotary_of_4(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary positions by the names of transformers 4, from ``rope_parameters``; nothing where there are none."""
    found = config.get("rope_parameters")
    if not isinstance(found, Mapping) or not found:
        return {}
    kind = str(config.get("model_type"))
    if not isinstance(next(iter(found.values())), Mapping):
        return _flat(found, kind)
    sliding = found.get("sliding_attention") or {}
    local = {_SLIDING.get(kind, "rope_local_base_freq"): sliding["rope_theta"]} if "rope_theta" in sliding else {}
    return {**_flat(found.get("full_attention") or {}, kind), **local}


def _flat(rope: Mapping[str, Any], kind: str) -> dict[str, Any]:
    names = {key: _NAMES.get(kind, {}).get(key, key) for key in ("rope_theta", "partial_rotary_factor")}
    scaled = rope.get("rope_type", "default") != "default"
    scaling = {key: value for key, value in rope.items() if key not in _PLAIN or key == "rope_type"}
    if kind == "phi3" and scaled:  # of transformers 4 takes these three keys only
        scaling = {
            "type": rope["rope_type"],
            **{key: rope.get(key) for key in ("short_factor", "long_factor")},
        }
    return {
        **{name: rope[key] for key, name in names.items() if key in rope},
        "rope_scaling": scaling if scaled else None,
    }


def _special(config: Mapping[str, Any], ids: SpecialIds | None, vocab_size: Any) -> dict[str, Any]:
    """The special ids that a configuration is to have: the tokenizer's, as far as the model has rows for them.

    A list that holds the tokenizer's end stays: such models end in several ways.
    """
    if ids is None:
        return {}
    special: dict[str, Any] = {}
    for key, own in ids.items():
        stated = config.get(key)
        usable = own is not None and (not isinstance(vocab_size, int) or own < vocab_size)
        special[key] = stated if isinstance(stated, list) and own in stated else own if usable else None
    return special
