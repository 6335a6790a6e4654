"""Which language a text is in, by py3langid: naive Bayes over byte sequences; the model comes with the package.

The beginning of the text decides (it takes about two milliseconds a kilobyte). The model is one of a version of the
package, which a manifest therefore names.
"""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from automodel_cli.errors import ConfigError

PACKAGE = "py3langid"
_CHARACTERS = 1000
_INSTALL = "pip install 'automodel-cli[dedup]'"


def package_version() -> str:
    """The version of the package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        raise ConfigError(f"languages need the package {PACKAGE}, which is not installed", _INSTALL) from None


@functools.cache
def _model() -> Any:
    package_version()
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def known_languages() -> frozenset[str]:
    """The codes (ISO 639) that there are."""
    return frozenset(_model().labels)


def language_of(text: str) -> tuple[str, float]:
    """The code of the most likely language, and how likely it is, 0 to 1, rounded to hundredths."""
    language, score = _model().classify(text[:_CHARACTERS])
    return language, round(float(score), 2)
