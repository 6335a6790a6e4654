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


class PatientRendezvous(RendezvousHandler):
    """A rendezvous whose store may vanish once the workers run: the machine that keeps it may finish first."""

    def __init__(self, inner: RendezvousHandler) -> None:
        self._inner = inner
        self._is_gone = False  # asked once: each question waits for the read timeout

    def num_nodes_waiting(self) -> int:
        """Machines that want to join; 0 where nobody can be asked."""
        return 0 if self._is_gone else self._ask(self._inner.num_nodes_waiting, 0)

    def shutdown(self) -> bool:
        """Close it for everybody, if anybody is left."""
        return False if self._is_gone else self._ask(self._inner.shutdown, False)

    def _ask(self, question: Callable[[], Answer], otherwise: Answer) -> Answer:
        try:
            return question()
        except (RendezvousError, RuntimeError):
            self._is_gone = True
            return otherwise

    def get_backend(self) -> str:
        """Its kind."""
        return self._inner.get_backend()

    @property
    def use_agent_store(self) -> bool:
        """Whether the workers meet in the agents' store."""
        return self._inner.use_agent_store

    def next_rendezvous(self) -> Any:
        """Wait for the other machines."""
        return self._inner.next_rendezvous()

    def is_closed(self) -> bool:
        """Whether the run is over."""
        return self._inner.is_closed()

    def set_closed(self) -> None:
        """The run is over."""
        self._inner.set_closed()

    def get_run_id(self) -> str:
        """Which run this is."""
        return self._inner.get_run_id()


def open_rendezvous(plan: LaunchPlan, endpoint: str) -> PatientRendezvous:
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
    return PatientRendezvous(get_rendezvous_handler(parameters))


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
