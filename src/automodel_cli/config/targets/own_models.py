"""The size of a model of our own families, from its section alone: no torch is imported."""

from __future__ import annotations

from typing import Any, Protocol

from automodel_cli.config.targets import aliases
from automodel_cli.config.targets.instantiate import check_target
from automodel_cli.config.targets.roles import ROLES
from automodel_cli.config.targets.signatures import declaring
from automodel_cli.config.targets.target import Target
from automodel_cli.errors import ConfigError
from automodel_cli.sizing.shape import ParamCounts, Shape


class SizedModel(Protocol):
    """What a family's configuration says of its size (``models.model_config``, which lies above this room)."""

    family: str
    vocab_size: int

    def parameters(self) -> dict[str, int]:
        """By role."""

    def counts(self) -> ParamCounts:
        """By convention."""

    def shape(self) -> Shape:
        """What cost formulas need."""


def own_model(target: Target) -> SizedModel | None:
    """The configuration of a model of ours; None for other models, whose size is known only once they are built.

    Raises:
        ConfigError: an argument is wrong, or does not fit the others.
    """
    name = aliases.present_name(target.name)
    schema = ROLES["model"].ours.get(name)
    kind: Any = declaring(schema) if schema else None
    if not hasattr(kind, "parameters"):
        return None
    checked = check_target(target, "model", imports=False)
    if checked.problems:
        raise ConfigError(str(checked.problems[0]))
    found: SizedModel = kind(**checked.arguments)
    return found
