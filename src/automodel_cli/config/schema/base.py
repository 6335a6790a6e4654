"""Base of all closed sections: no unknown keys, frozen values, documented fields, ignored keys of older files.

A key that older files carry and that needs no action here is declared with ``ignored(...)``: its value is checked,
and where somebody set it ``Section.collect_notes`` says once why it has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from automodel_cli.config.amounts import parse_amount
from automodel_cli.config.targets.target import TARGET_KEY, describe_value
from automodel_cli.dtypes import short_name
from automodel_cli.storage.urls import is_remote, local_path

_IGNORED = "ignored"
_OLD_PACKAGES = ("nemo_automodel", "torch", "automodel_cli")


@dataclass(frozen=True)
class TypeName:
    """Name of a type for error messages and the documentation."""

    text: str


def _refuse_bool(value: Any) -> Any:
    # Python's True is an int; in a config file `max_steps: true` is a slip, not the number one.
    if isinstance(value, bool):
        raise PydanticCustomError("not_a_number", "expected a number")
    return value


not_a_bool = BeforeValidator(_refuse_bool)
"""Part of a number's type: true and false are no numbers."""

Count = Annotated[int, not_a_bool, Field(gt=0), TypeName("a whole number from 1 up")]
Whole = Annotated[int, not_a_bool, Field(ge=0), TypeName("a whole number from 0 up")]
Positive = Annotated[float, not_a_bool, Field(gt=0, allow_inf_nan=False), TypeName("a number above 0")]
NotNegative = Annotated[float, not_a_bool, Field(ge=0, allow_inf_nan=False), TypeName("a number from 0 up")]

Amount = Annotated[Count, BeforeValidator(parse_amount), TypeName("a number like 10000, 500K, 500M, 1.5B or 2T")]

Interval = Count | Literal["final"] | None
"""Every N updates (and at the end); ``final``: only at the end; null: never."""

Precision = Annotated[Literal["auto", "bf16", "fp16", "fp32"], BeforeValidator(short_name)]
Dtype = Annotated[Literal["bf16", "fp16", "fp32"], BeforeValidator(short_name)]


Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$"), TypeName("auto, cpu, mps, cuda or cuda:N")]
BatchSize = Annotated[Count | Literal["auto"], TypeName("a whole number from 1 up, or auto")]


def _on_a_disk(value: str) -> str:
    if is_remote(value):
        raise ValueError("expected a folder on a disk, found a URL of object storage")
    return local_path(value)


LocalFolder = Annotated[str, AfterValidator(_on_a_disk), TypeName("a folder on a disk")]
"""Where a URL would become a folder with the name ``s3:``."""


def _split_words(value: Any) -> Any:
    """``"a,b"`` or a list of such as a flat tuple of names."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, Sequence):
        return given
    return tuple(word.strip() for text in given for word in str(text).split(",") if word.strip())


Counts = Annotated[
    tuple[Count, ...], BeforeValidator(_split_words), TypeName("whole numbers from 1 up, separated by commas")
]
Shares = Annotated[
    tuple[Positive, ...], BeforeValidator(_split_words), TypeName("numbers above 0, separated by commas")
]
Words = Annotated[tuple[str, ...], BeforeValidator(_split_words), TypeName("names, separated by commas")]


def ignored(default: Any, reason: str) -> Any:
    """A field of older files that has no effect, because ``reason``."""
    return Field(default, json_schema_extra={_IGNORED: reason})


def reason_ignored(field: FieldInfo) -> str:
    """Why a key has no effect; empty for all that have one."""
    extra = field.json_schema_extra
    return str(extra.get(_IGNORED, "")) if isinstance(extra, dict) else ""


class Section(BaseModel):
    """A closed section: unknown keys are errors, values are frozen, docstrings under fields are help."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        defer_build=True,  # half of a command's start-up: only the models it validates are built
        arbitrary_types_allowed=True,
        validate_default=False,
    )

    _placeholders: dict[tuple[str | int, ...], Any] = PrivateAttr(default_factory=dict)
    """``path -> text`` of values that came from the environment: printed and saved as they were written."""

    _derived: dict[str, Any] = PrivateAttr(default_factory=dict)
    """``dotted key -> value`` of what nobody has set and followed from `model.depth`."""

    panels: ClassVar[Mapping[str, str]] = {}
    """Groups of options in a command's help: title -> names of fields; what is in none is an option without group."""

    known_targets: ClassVar[tuple[str, ...]] = ()
    """Class names that old files give as ``_target_`` of this section; they mean the section itself."""

    @classmethod
    def keys(cls) -> list[str]:
        """The keys a file may give, old names included."""
        return [key for name in cls.model_fields for key in keys_of(cls, name)]

    @classmethod
    def field_of(cls, key: object) -> str | None:
        """The field that a key sets."""
        return next((name for name in cls.model_fields if key in keys_of(cls, name)), None)

    @classmethod
    def in_order(cls) -> list[str]:
        """Fields as help and documentation list them: required ones, those of panels, other ones, inherited ones."""
        listed = " ".join(cls.panels.values()).split()
        declared = [name for owner in cls.__mro__ for name in vars(owner).get("__annotations__", ())]
        fields = [name for name in (*listed, *declared) if name in cls.model_fields]
        return sorted(dict.fromkeys(fields), key=lambda name: not cls.model_fields[name].is_required())

    @model_validator(mode="before")
    @classmethod
    def _accept_known_target(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or TARGET_KEY not in data or TARGET_KEY in cls.model_fields:
            return data
        name = data[TARGET_KEY]
        rest = {key: value for key, value in data.items() if key != TARGET_KEY}
        package, kind = str(name).partition(".")[0].lower(), str(name).rpartition(".")[2]
        if package in _OLD_PACKAGES and kind in cls.known_targets:
            return cls.from_known_target(kind, rest)
        known = f"; the known ones are {', '.join(cls.known_targets)}" if cls.known_targets else ""
        raise ValueError(f"this section is not built from a _target_ ({describe_value(name)}){known}")

    @model_validator(mode="before")
    @classmethod
    def _one_spelling_a_key(cls, data: Any) -> Any:
        for field in cls.model_fields.values() if isinstance(data, Mapping) else ():
            alias = field.validation_alias
            names = alias.choices if isinstance(alias, AliasChoices) else ()
            if len(given := [str(name) for name in names if name in data]) > 1:
                raise ValueError(f"{' and '.join(given)} are two names of one key; keep one of them")
        return data

    @classmethod
    def from_known_target(cls, class_name: str, data: dict[str, Any]) -> dict[str, Any]:
        """What ``_target_: ...class_name`` means for the section; by default nothing beyond its keys."""
        return data

    def collect_notes(self, prefix: str = "") -> list[str]:
        """One line for each ignored key that somebody set, and why it is ignored."""
        notes = []
        for name, field in type(self).model_fields.items():
            value, reason = getattr(self, name), reason_ignored(field)
            if reason and name in self.model_fields_set and value != field.default:
                notes.append(f"{prefix}{name} is ignored: {reason}")
            if isinstance(value, Section):
                notes += value.collect_notes(f"{prefix}{name}.")
        return notes


class JsonOutput(Section):
    """Results for programs."""

    as_json: bool = Field(default=False, validation_alias="json")
    """Print JSON instead of tables."""


def keys_of(section: type[Section], field: str) -> list[str]:
    """The keys that set ``field``; the first is the one to write."""
    alias = section.model_fields[field].validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [alias] if isinstance(alias, str) else [field]
