"""torch's rendezvous of several machines, which may outlive its store; what goes wrong between them, for people."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch.distributed import DistError
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousHandler,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from automodel_cli.errors import AutomodelError
from automodel_cli.launch.plan import LaunchPlan
from automodel_cli.text import first_line

Answer = TypeVar("Answer")


class LaunchFailed(AutomodelError):
    """A worker failed; ``exit_code`` is its own."""

    def __init__(self, message: str, hint: str = "", *, exit_code: int = 1) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


def _outlive_its_store(rendezvous: RendezvousHandler) -> RendezvousHandler:
    """Let a rendezvous answer when its store has vanished: the machine that keeps it may finish first."""
    is_gone = False  # asked once: each question waits for the read timeout

    def patient(question: Callable[[], Answer], otherwise: Answer) -> Callable[[], Answer]:
        def ask() -> Answer:
            nonlocal is_gone
            with contextlib.suppress(RendezvousError, RuntimeError):
                if not is_gone:
                    return question()
            is_gone = True
            return otherwise

        return ask

    found: Any = rendezvous
    found.num_nodes_waiting = patient(rendezvous.num_nodes_waiting, 0)
    found.shutdown = patient(rendezvous.shutdown, False)
    return rendezvous


def open_rendezvous(plan: LaunchPlan, endpoint: str) -> RendezvousHandler:
    """torch's c10d rendezvous of a plan, at an endpoint that is known to be good."""
    options: dict[str, Any] = {"timeout": 900, **plan.options}
    if plan.is_host is not None:
        options["is_host"] = str(plan.is_host).lower()
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=endpoint,
        run_id=plan.run_id,
        min_nodes=plan.min_nodes,
        max_nodes=plan.max_nodes,
        local_addr=plan.local_addr,
        **options,
    )
    return _outlive_its_store(get_rendezvous_handler(parameters))


@contextlib.contextmanager
def rendezvous_errors(plan: LaunchPlan) -> Iterator[None]:
    """What goes wrong between machines, as :class:`LaunchFailed`."""
    try:
        yield
    except RendezvousClosedError:
        raise LaunchFailed(
            f"run {plan.run_id!r} at {plan.endpoint} has ended",
            "another machine finished or gave up: see its output",
        ) from None
    except RendezvousTimeoutError:
        raise LaunchFailed(
            f"fewer than {plan.min_nodes} machines came to {plan.endpoint} in time",
            "start the same command on each; --rdzv-conf join_timeout=SECONDS waits longer",
        ) from None
    except (RendezvousConnectionError, RendezvousError, DistError, ConnectionError) as error:
        raise LaunchFailed(
            f"cannot meet the other machines at {plan.endpoint}: {first_line(error.__cause__ or error)}",
            "the machine named there must run the same command, and its port must be reachable",
        ) from error
