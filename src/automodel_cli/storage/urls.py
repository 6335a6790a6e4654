"""Addresses in object storage: ``scheme://place/key``, where a place is a bucket, a container or a repository.

| scheme | place | key |
|---|---|---|
| ``s3://``, ``gs://``, ``az://`` | bucket or container | the name of the object, with forward slashes |
| ``hf://`` | ``datasets/OWNER/NAME`` or ``OWNER/NAME``, with or without ``@REVISION`` | the path in the repository |
| ``file://`` | none | the absolute path |

A URL never carries a secret: user names, passwords and signatures are refused, because URLs are printed and saved.
Nothing here imports a client or asks the network.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.errors import ConfigError
from automodel_cli.plain_text import without_controls

SCHEMES = ("s3", "gs", "az", "hf", "file")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "azure": "az"}
_HF_KINDS = ("datasets", "spaces", "models")


@dataclass(frozen=True)
class Address:
    """The parts of a URL; ``str`` puts them together again.

    Attributes:
        scheme: one of :data:`SCHEMES`.
        place: see the table above; "" for files.
        key: without a slash at its beginning (but for files) and at its end; "" for the place itself.
    """

    scheme: str
    place: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{'/'.join(part for part in (self.place, self.key) if part)}"


def is_url(text: object) -> bool:
    """Whether ``text`` is spelled as a URL, of a scheme that is known or not."""
    return isinstance(text, str) and _SCHEME.match(text) is not None


def is_remote(text: object) -> bool:
    """Whether ``text`` is a URL of something that is not a local file."""
    return is_url(text) and not str(text).lower().startswith("file://")


def split_url(url: str) -> Address:
    """The parts of a URL.

    Raises:
        ConfigError: the scheme is not known, the place is missing, or something that may be a secret is in it.
    """
    found = _SCHEME.match(url)
    scheme = found[1].lower() if found else ""
    if found is None or scheme not in SCHEMES:
        shown = f"{scheme}://" if scheme else without_controls(url)[:80]
        instead = f"write {_ALIASES[scheme]}://" if scheme in _ALIASES else f"use {_in_words(SCHEMES)}, or a local path"
        raise ConfigError(f"{shown} is not a storage that automodel knows", instead)
    rest = url[found.end() :]
    _refuse_secrets(scheme, rest)
    if any(ord(character) < 32 or ord(character) == 127 for character in rest):
        raise ConfigError(f"{without_controls(url)[:80]}: control characters in a URL", "check how it is spelled")
    if scheme == "file":
        return Address(scheme, "", _local_key(rest))
    depth = _depth_of_place(scheme, rest)
    parts = rest.split("/", depth)
    place, key = "/".join(parts[:depth]), parts[depth] if len(parts) > depth else ""
    if len(parts) < depth or not all(parts[:depth]):
        what = "owner and name of a repository" if scheme == "hf" else "the name of a bucket"
        raise ConfigError(f"{scheme}://{rest}: expected {what} after {scheme}://", "check how the URL is spelled")
    key = key.strip("/")
    if any(part in ("", ".", "..") for part in key.split("/")) and key:
        raise ConfigError(
            f"{scheme}://{rest}: an empty part, '.' or '..' in a key", "write the plain name of the object"
        )
    return Address(scheme, place, key)


def _in_words(schemes: tuple[str, ...]) -> str:
    return ", ".join(f"{scheme}://" for scheme in schemes[:-1]) + f" or {schemes[-1]}://"


def _refuse_secrets(scheme: str, rest: str) -> None:
    """Nothing of the URL is in the message: a secret would be printed."""
    place = rest.split("/", 1)[0]
    if scheme != "hf" and "@" in place:
        raise ConfigError(
            f"a {scheme}:// URL with a user or key in it is refused: URLs are printed and saved",
            "give credentials in the environment or in the provider's own files",
        )
    if re.search(r"[?&](X-Amz-|X-Goog-|Signature=|sig=|se=|token=|AWSAccessKeyId=)", rest, re.IGNORECASE):
        raise ConfigError(
            f"a signed {scheme}:// URL is refused: its signature would be printed and saved",
            "give the plain URL, and credentials in the environment or in the provider's own files",
        )


def _depth_of_place(scheme: str, rest: str) -> int:
    if scheme != "hf":
        return 1
    return 3 if rest.split("/", 1)[0] in _HF_KINDS else 2


def _local_key(rest: str) -> str:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise ConfigError(
            f"file://{without_controls(rest)[:80]}: expected an absolute path after file://",
            "write file:///absolute/path, or the path alone",
        )
    return "/" + path.rstrip("/")


def local_path(url_or_path: str) -> str:
    """The path that a ``file://`` URL stands for; other text as it is."""
    if is_url(url_or_path) and not is_remote(url_or_path):
        return split_url(url_or_path).key
    return url_or_path


def join_url(url: str, *names: str) -> str:
    """``url`` with ``names`` (relative, with forward slashes) below it."""
    return "/".join((url.rstrip("/"), *(name.strip("/") for name in names)))


def parent_url(url: str) -> str:
    """The URL of the folder that holds it; the place itself has none above it."""
    address = split_url(url)
    return str(Address(address.scheme, address.place, posixpath.dirname(address.key)))


def name_of(url: str) -> str:
    """The last part of a URL's key, or of its place where it has no key."""
    address = split_url(url)
    return posixpath.basename(address.key or address.place)


def relative_to(url: str, folder: str) -> str:
    """The name of ``url`` in ``folder``, with forward slashes."""
    prefix = folder.rstrip("/") + "/"
    assert url.startswith(prefix), (url, folder)
    return url[len(prefix) :]


def below(folder: str | Path, name: str) -> str:
    """``name`` in a local folder or a URL, spelled as the folder is."""
    return join_url(folder, name) if isinstance(folder, str) and is_remote(folder) else str(Path(folder) / name)
