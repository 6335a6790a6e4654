"""Calls of transformers: closed lists of arguments, every door shut, unknown keys refused.

transformers' ``from_pretrained`` takes any keyword and gives it to whatever below may want it, so that what opens a
door in its next version is not known here. So only the arguments listed below are passed; every other key has to be a
field of the model's configuration, which is loaded first, and is checked like a field.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from automodel_cli import doors, dtypes, plain_text
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.text import first_line

_BOOL: TypeAdapter[Any] = TypeAdapter(bool)
_NUMBER: TypeAdapter[Any] = TypeAdapter(int | FiniteFloat)

SOURCE = "pretrained_model_name_or_path"
_TEXT = str | None

# Of the hub and its cache; of a model; of a tokenizer. Doors are typed by their own table.
HUB_ARGUMENTS: dict[str, Any] = {
    "revision": _TEXT, "subfolder": str, "cache_dir": _TEXT, "token": _TEXT | bool,
    **dict.fromkeys(("local_files_only", "force_download", "trust_remote_code", "code_revision"), Any),
}  # fmt: skip
BUILT_ARGUMENTS: dict[str, Any] = {
    "dtype": Any, "torch_dtype": Any, "attn_implementation": Any, "experts_implementation": Any,
    "trust_remote_code": Any, "code_revision": Any, "use_kernels": Any, "allow_all_kernels": Any,
}  # fmt: skip
MODEL_ARGUMENTS: dict[str, Any] = {
    **HUB_ARGUMENTS, **BUILT_ARGUMENTS,
    "config": Any, "weights_only": Any, "use_safetensors": Any, "kernel_config": Any,
    "from_tf": Any, "from_flax": Any, "variant": _TEXT, "ignore_mismatched_sizes": bool, "device_map": Any,
}  # fmt: skip
TOKENIZER_ARGUMENTS: dict[str, Any] = {
    **HUB_ARGUMENTS, "use_fast": bool, "tokenizer_type": _TEXT, "padding_side": str, "truncation_side": str,
    "model_max_length": int, "add_bos_token": bool, "add_eos_token": bool, "add_prefix_space": bool,
    "clean_up_tokenization_spaces": bool, "legacy": bool, "from_slow": bool, "split_special_tokens": bool,
    "bos_token": _TEXT, "eos_token": _TEXT, "unk_token": _TEXT, "sep_token": _TEXT, "pad_token": _TEXT,
    "cls_token": _TEXT, "mask_token": _TEXT,
}  # fmt: skip
# Of a configuration, beyond the fields that it lists itself.
FIELDS = ("dtype", "torch_dtype", "attn_implementation", "experts_implementation", "name_or_path")


class FieldErrors(ConfigError):
    """Keys that a loaded configuration does not take: the caller knows where they were written.

    Attributes:
        problems: what is wrong, by key.
        known: the keys that the configuration has.
    """

    def __init__(self, problems: Mapping[str, str], known: list[str]) -> None:
        super().__init__("; ".join(f"{name}: {text}" for name, text in problems.items()), "correct the model section")
        self.problems, self.known = problems, known


def call(function: Callable[..., Any], arguments: Mapping[str, Any], *, role: str, is_trusted: bool) -> Any:
    """Call a class or a class method of transformers with its doors shut wherever ``arguments`` say nothing.

    Args:
        is_trusted: whether code that comes with the source may run; then its files are not looked at first.

    Raises:
        FieldErrors: a key that is neither an argument listed here nor a field of the configuration.
        ConfigError: the source would run code, or has only pickles.
    """
    given = _with_dtypes(arguments)
    source = given.get(SOURCE)
    if not isinstance(source, str):
        return _build(function, given)
    wants_weights = role == "model" and given.get("use_safetensors") is not False
    if not is_trusted:
        look = doors.check_folder if role == "tokenizer" else doors.check_source
        hub = _of(given, ("revision", "subfolder", "cache_dir", "token"))
        look(source, weights=wants_weights, **hub)
        if isinstance(config := given.get("config"), str):
            look(config, **hub)
    if role == "tokenizer":
        return function(**shut(function, source) | given)
    if role == "hf_config":
        return _load_config(function, given)
    return _load_model(function, given)


def _build(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Call what loads nothing: a constructor, ``from_config``, ``for_model``."""
    if not inspect.ismethod(function):
        return function(**given)
    is_auto = "transformers.models.auto." in str(getattr(function.__self__, "__module__", ""))
    if is_auto:
        return function(**shut(function, None) | given)
    # a class of its own runs no code of others, and is not told so
    return function(
        **{name: value for name, value in given.items() if name not in ("trust_remote_code", "code_revision")}
    )


def _load_config(function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """Load a configuration; transformers drops overrides it does not know, here they are errors."""
    options = shut(function, given[SOURCE]) | _of(given, (SOURCE, *HUB_ARGUMENTS))
    own = {name: value for name, value in given.items() if name not in options}
    config = function(**options)
    return function(**options, **checked_fields(config, own)) if own else config


def _load_model(function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    owner: Any = getattr(function, "__self__", None)
    options = _of(given, (SOURCE, *MODEL_ARGUMENTS))
    own = {name: value for name, value in given.items() if name not in options}
    named = options.get("config")
    if named is not None and not isinstance(named, str):
        if own:
            raise FieldErrors(dict.fromkeys(own, "set it in the section config, which is given"), [])
    else:  # a name too: Auto classes would drop it silently
        is_auto = owner.__module__.startswith("transformers.models.auto.")
        loads = importlib.import_module("transformers").AutoConfig if is_auto else owner.config_class
        named = {} if named is None else {SOURCE: named}
        options["config"] = _load_config(loads.from_pretrained, _of(given, (SOURCE, *HUB_ARGUMENTS)) | named | own)
    base = importlib.import_module("transformers").PreTrainedModel.from_pretrained
    return function(**shut(function, given[SOURCE], base) | options)


def checked_fields(config: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """New values for fields of a loaded configuration, converted to the kind of value that each has now.

    Raises:
        FieldErrors: a field that it does not have, or a value of another kind.
    """
    has = config.to_dict()
    known = [*has, *getattr(config, "attribute_map", {}), *FIELDS]
    problems = {name: f"{type(config).__name__} has no such key" for name in sorted(own) if name not in known}
    converted = {}
    for name, value in own.items():
        try:
            converted[name] = _like(has.get(name), value)
        except ValidationError:
            kind = "true or false" if isinstance(has[name], bool) else "a number"
            problems[name] = f"expected {kind}, found {value!r}"
    if problems:
        raise FieldErrors(problems, known)
    return converted


def _like(present: Any, value: Any) -> Any:
    """``value``, which replaces ``present``: true or false for a truth value, a number for a number."""
    if value is None or not isinstance(present, (bool, int, float)):
        return value
    if isinstance(present, bool):
        return _BOOL.validate_python(value)
    return value if isinstance(value, list) else _NUMBER.validate_python(value, strict=isinstance(value, bool))


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    add_generation_prompt: bool = False,
    spans: bool = False,
    **variables: str,
) -> tuple[str, list[tuple[int, int]]]:
    """The text that a chat template makes of messages, in transformers' sandbox.

    Templates that name today's date are given the one day that Llama's name without a clock: text is reproducible.

    Args:
        spans: also find what the template marks with ``{% generation %}``, as (begin, end) of characters.
        variables: ``bos_token`` and the like.

    Raises:
        DataError: it refuses the conversation, is no template, or wants what the sandbox forbids.
    """
    rendering = importlib.import_module("transformers.utils.chat_template_utils")
    try:
        texts, found = rendering.render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            return_assistant_tokens_mask=spans,
            **{"date_string": "26 Jul 2024", **variables},
        )
    except Exception as error:
        reason = plain_text.without_controls(first_line(error))[:200]
        raise DataError(
            f"the chat template cannot render a conversation: {reason}", "look at the roles and their order"
        ) from error
    return texts[0], found[0] if found else []


def shut(function: Callable[..., Any], source: str | None, *further: Callable[..., Any]) -> dict[str, Any]:
    """Values for the doors that these functions ask for."""
    names = frozenset().union(*(_looked_up(each) for each in (function, *further)))
    return doors.shut_values(source, names.__contains__)


@functools.cache
def _looked_up(function: Callable[..., Any]) -> frozenset[str]:
    """Names that a function takes, or looks up among its keywords."""
    named = inspect.signature(function).parameters
    return frozenset((*named, *re.findall(r"""["'](\w+)["']""", inspect.getsource(function))))


def _of(given: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in names}


def _with_dtypes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Types by the names torch has for them."""
    prepared = dict(arguments)
    for name in ("dtype", "torch_dtype"):
        value = prepared.get(name)
        if isinstance(value, str) and value != "auto":
            prepared[name] = dtypes.torch_dtype(value)
            if prepared[name] is None:
                raise ConfigError(f"{value!r} is not a dtype", "use bfloat16, float16 or float32")
    if "torch_dtype" in prepared:
        prepared["dtype"] = prepared.pop("torch_dtype")
    return prepared
