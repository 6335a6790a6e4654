"""Table of other libraries' arguments that decide whether code runs, with their types and safe values.

Libraries take any non-empty text for true (``trust_remote_code: no`` is text in YAML 1.2) and any empty value for
false (``weights_only: []``), and their defaults change with their versions. So such an argument is what it says or an
error, never converted; and where a file says nothing, the value that keeps the door shut is passed along. The same
holds for what a checkpoint's ``config.json`` says. The code stays shut unless its source is trusted by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from automodel_cli.errors import ConfigError
from automodel_cli.json_files import read_json, without_controls


@dataclass(frozen=True)
class Door:
    """One argument.

    Attributes:
        takes: name of its type, for messages.
        is_typed: whether a value is of that kind.
        opens: whether a value (of that kind) needs trust.
        is_passed: whether we pass a value where a file says nothing, whatever the library's default.
        shut: that value; ``local_files_only`` is a function of the source.
    """

    takes: str
    is_typed: Callable[[Any], bool]
    opens: Callable[[Any], bool]
    is_passed: bool = False
    shut: Any = None

    @property
    def shut_text(self) -> str:
        """What needs no trust."""
        if self.opens is _never:
            return "any"
        if isinstance(self.shut, bool):
            return str(self.shut).lower()
        words: dict[Any, str] = {_is_given: "null", _is_timm: "no model of timm"}
        return words.get(self.opens, "no name of a repository")


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_given(value: Any) -> bool:
    return value is not None


def _never(value: Any) -> bool:
    return False


def _switch(shut: bool) -> Door:
    """Strictly true or false; the value that is not ``shut`` needs trust."""
    return Door("true or false", _is_bool, lambda value: value is not shut, True, shut)


_HARMLESS_SWITCH = Door("true or false", _is_bool, _never)
_NAMED = Door("text or null", lambda value: value is None or isinstance(value, str), _is_given)
_ANYTHING = Door("null", lambda value: True, _is_given)


def names_a_repository(value: Any) -> bool:
    """True where transformers would fetch and run a kernel: an implementation ``owner/repository``."""
    if isinstance(value, Mapping):
        return any(names_a_repository(item) for item in value.values())
    return isinstance(value, str) and any(mark in value for mark in "/:|@\\")


def _is_implementation(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_implementation(item) for item in value.values())
    return value is None or isinstance(value, str)


def _is_timm(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("timm")


_IMPLEMENTATION = Door("text, null or a mapping of them", _is_implementation, names_a_repository)

DOORS: Mapping[str, Door] = {
    # whether Python files of a repository are imported, and which
    "trust_remote_code": _switch(False),
    "code_revision": _NAMED,
    "auto_map": _ANYTHING,
    "custom_pipelines": _ANYTHING,
    "custom_generate": _ANYTHING,
    # whether weights may be pickles
    "weights_only": _switch(True),
    "use_safetensors": _switch(True),
    "from_tf": _switch(False),
    "from_flax": _switch(False),
    "allow_pickle": _switch(False),
    # kernels from the hub
    "use_kernels": _switch(False),
    "allow_all_kernels": _switch(False),
    "kernel_config": replace(_ANYTHING, is_passed=True),
    "attn_implementation": _IMPLEMENTATION,
    "_attn_implementation": _IMPLEMENTATION,
    "_attn_implementation_internal": _IMPLEMENTATION,
    "experts_implementation": _IMPLEMENTATION,
    "_experts_implementation": _IMPLEMENTATION,
    "_experts_implementation_internal": _IMPLEMENTATION,
    # other libraries' models, which load what they like
    "model_type": Door("text", lambda value: isinstance(value, str), _is_timm),
    "use_timm_backbone": _switch(False),
    "use_pretrained_backbone": _switch(False),
    "backbone": _ANYTHING,
    "backbone_kwargs": _ANYTHING,
    "checkpoint_path": _ANYTHING,
    # where files are from
    "local_files_only": Door("true or false", _is_bool, _never, True, lambda source: Path(source).is_dir()),
    "force_download": _HARMLESS_SWITCH,
    "output_loading_info": _HARMLESS_SWITCH,
}  # fmt: skip

# Of a configuration that lies in a file: these name code that stays shut as long as nobody trusts it.
_HARMLESS_IN_FILES = frozenset({"auto_map", "custom_pipelines", "trust_remote_code"})


def mistyped(arguments: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any, Door]]:
    """``(path, value, door)`` of each argument that is not what it has to be."""
    for path, value, door in _found(arguments):
        if not door.is_typed(value):
            yield path, value, door


def opened(arguments: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The path of each argument that opens a door."""
    for path, value, door in _found(arguments):
        if door.is_typed(value) and door.opens(value):
            yield path


def _found(arguments: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any, Door]]:
    for path, value in walk(arguments):
        if path[-1] in DOORS:
            yield path, value, DOORS[path[-1]]


def walk(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value below ``value`` with its path; what is neither mapping nor list is yielded whole."""
    if path:
        yield path, value
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from walk(item, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from walk(item, (*path, str(index)))


def shut_values(source: str | None, takes: Callable[[str], bool]) -> dict[str, Any]:
    """What is passed where a file says nothing: every door that the callable ``takes``, shut.

    Args:
        source: the folder or repository that is loaded from; None where nothing is.
    """
    return {
        name: door.shut(source) if callable(door.shut) else door.shut
        for name, door in DOORS.items()
        if door.is_passed and takes(name) and (source is not None or not callable(door.shut))
    }


# ------------------------------------------------------------------------------- configurations in files

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")


def check_config(config: Any, where: Path | str) -> None:
    """Check what a model's ``config.json``, or a checkpoint, says before transformers builds of it.

    Raises:
        ConfigError: it is no mapping, or would have code run that nobody trusted.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"{where}: expected a mapping, found {type(config).__name__}", "this is not a model's config.json"
        )
    for path, value, door in _found(config):
        if path[-1] in _HARMLESS_IN_FILES or value is None:
            continue
        if not door.is_typed(value) or door.opens(value):
            key, shown = without_controls(".".join(path)), without_controls(repr(value))[:60]
            raise ConfigError(
                f"{without_controls(str(where))}: {key} ({shown}) would run code that is not in it",
                f"take {key} out of the file",
            )


def check_folder(source: str, *, weights: bool = False, subfolder: str = "", **_: Any) -> None:
    """Check a model's folder before transformers sees it; a name that is no folder passes.

    Args:
        weights: whether its weights will be read, too.
        subfolder: where in it.

    Raises:
        ConfigError: its configuration would run code; its weights are only there as pickles; it is an adapter.
    """
    folder = Path(source, subfolder or "")
    if not folder.is_dir():
        return
    if (path := folder / "config.json").exists():
        check_config(read_json(path, ConfigError, allow_nan=True), path)
    if not weights:
        return
    if (folder / "adapter_config.json").exists():
        raise ConfigError(
            f"{folder} is an adapter for another model", "merge it into that model first, and name the result"
        )
    refuse_pickles(folder)


def check_source(source: str, *, weights: bool = False, **hub: Any) -> None:
    """As `check_folder`, for a repository of the hub too, whose ``config.json`` is fetched first.

    Raises:
        ConfigError: as `check_folder`.
        OSError: transformers cannot find it.
    """
    check_folder(source, weights=weights, **hub)
    if not Path(source).is_dir():
        base = importlib.import_module("transformers").PreTrainedConfig
        check_config(base.get_config_dict(source, **hub)[0], source)


def refuse_pickles(folder: Path) -> None:
    """Raise a ConfigError where weights lie in ``folder`` as pickles alone."""
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted({path.name for pattern in _PICKLES for path in folder.glob(pattern)})
    if pickles:
        raise ConfigError(
            f"{folder} has only pickles ({', '.join(pickles[:3])})",
            "pickles can run code and are not read: convert them with transformers' save_pretrained",
        )
