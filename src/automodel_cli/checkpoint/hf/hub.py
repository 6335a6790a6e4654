"""Exported folders on their way to the Hugging Face Hub, through huggingface_hub: where they go, and what went wrong.

The address is that of ``HF_ENDPOINT`` and the token huggingface_hub's own (``HF_TOKEN``, or the login of ``hf auth
login``). Neither comes from a configuration, and no token is passed on, written or shown here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants

from automodel_cli import __version__
from automodel_cli.errors import AutomodelError
from automodel_cli.plain_text import command_line, without_controls
from automodel_cli.text import first_line

# An earlier export in the same repository may be in other parts, which loaders would read together with the new ones.
_REPLACED = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]
_LONGEST_REASON = 200
_QUERY = re.compile(r"\?\S*=[^\s'\"]*")  # of an address, where signatures are


class HubError(AutomodelError):
    """A folder did not get to the Hub."""


@dataclass(frozen=True)
class Destination:
    """A repository of the Hub; a name without an account is in that of the token."""

    repo_id: str
    private: bool = False
    revision: str | None = None  # a branch; None: main

    def describe(self) -> str:
        """``https://huggingface.co/me/gpt (private if it is new)``."""
        name = self.repo_id if "/" in self.repo_id else f"<your account>/{self.repo_id}"
        branch = f", branch {self.revision}" if self.revision else ""
        return f"{constants.ENDPOINT}/{name} ({'private' if self.private else 'public'} if it is new{branch})"

    @property
    def options(self) -> list[str]:
        """What says so on a command line, ours or huggingface_hub's."""
        return (["--revision", self.revision] if self.revision else []) + (["--private"] if self.private else [])

    def by_hand(self, folder: Path) -> str:
        """The command that uploads ``folder`` there."""
        return command_line(["hf", "upload", self.repo_id, folder, ".", *self.options])


def why_not_now() -> str | None:
    """Why an upload cannot succeed as things are here, as far as that shows without a network; else None."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if huggingface_hub.get_token() is None:
        return "there is no token: run hf auth login, or set HF_TOKEN"
    return None


def push(folder: Path, to: Destination, *, message: str) -> str:
    """Upload every file of ``folder`` as a commit on top of what the repository has, which is made if need be.

    Returns:
        The address of the repository.

    Raises:
        HubError: it did not get there; ``folder`` is as it was.
    """
    api = huggingface_hub.HfApi(library_name="automodel", library_version=__version__)
    try:
        # Whether a new repository is public may be a matter of the account: False would ask for it.
        made = api.create_repo(to.repo_id, private=to.private or None, exist_ok=True)
        if to.private and not api.model_info(made.repo_id).private:
            raise HubError(
                f"{made} exists already and is public, and this upload was to be private",
                "make it private on its settings page, or name another repository; nothing was uploaded",
            )
        if to.revision is not None:
            api.create_branch(made.repo_id, branch=to.revision, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            revision=to.revision,
            commit_message=message,
            delete_patterns=_REPLACED,
        )
    except AutomodelError:
        raise
    except Exception as error:  # of several libraries, with no class in common
        raise _explained(error, to, folder) from error
    return str(made)


def _explained(error: BaseException, to: Destination, folder: Path) -> HubError:
    """What went wrong, and what to do; the answer of the Hub, where there was one, is deep in a chain of errors."""
    status = next((found for one in _chain(error) if (found := _status(one)) is not None), None)
    where = f"{folder} was not uploaded to {to.repo_id}"
    again = f"then: {to.by_hand(folder)}"
    if status == 401:
        return HubError(f"{where}: the Hub knows no such token (401)", f"hf auth login, or set HF_TOKEN; {again}")
    if status == 403:
        return HubError(
            f"{where}: the token may not write there (403)",
            f"take a token with the right to write, or a name in your own account; {again}",
        )
    if status in (409, 412):
        return HubError(f"{where}: somebody else changed it at the same time ({status})", f"look at it; {again}")
    if status is not None and status >= 500:
        return HubError(f"{where}: the Hub failed ({status})", f"wait until it is well; {again}")
    told = _QUERY.sub("?...", first_line(_innermost(error)))
    reason = without_controls(f"{type(error).__name__}: {told}")[:_LONGEST_REASON]
    if status is not None:
        return HubError(f"{where}: the Hub answered {status} ({reason})", f"look at the name and branch; {again}")
    return HubError(f"{where}: {constants.ENDPOINT} did not take it ({reason})", f"look at the network; {again}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _innermost(error: BaseException) -> BaseException:
    return list(_chain(error))[-1]


def _status(error: BaseException) -> int | None:
    response: Any = getattr(error, "response", None)
    found = getattr(response, "status_code", None)
    return found if isinstance(found, int) else None
