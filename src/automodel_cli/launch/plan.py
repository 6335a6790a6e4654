"""From launch flags to a plan: how many processes here, where the machines meet, what happens when a process dies.

Pure: no torch, no network. Flags are torchrun's, by their dashed names, values as text.

    what is given                                     how machines find each other
    nothing but --nproc-per-node                      not at all: a store on localhost, at a free port
    --rdzv-endpoint HOST:PORT                         HOST, which knows its own name, keeps the store
    --node-rank R --master-addr HOST [--master-port]  the machine of rank 0 keeps the store, at HOST

The last is torchrun's static rendezvous by name only: there the workers of a restart meet in the store of those before
them, and may read addresses of processes that are gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from automodel_cli.errors import ConfigError

SHUTDOWN_TIMEOUT_S = 600.0
"""How long processes that were asked to stop may take to save. The stock launcher allows 30 s."""
ELASTIC_RESTARTS = 3  # with --nnodes MIN:MAX, where a lost machine is expected
MASTER_PORT = 29500
_ENDPOINT_PORT = 29400
_MONITOR_INTERVAL_S = 0.1
DEFAULTS = {
    "nproc-per-node": "1",
    "nnodes": "1",
    "rdzv-endpoint": f"this machine, for one; port {_ENDPOINT_PORT} where none is given",
    "rdzv-id": "automodel",
    "rdzv-backend": "what the other flags say",
    "rdzv-conf": "none",
    "node-rank": "none",
    "master-addr": "localhost, for one machine",
    "master-port": f"{MASTER_PORT}",
    "max-restarts": f"0; {ELASTIC_RESTARTS} with MIN:MAX machines",
    "monitor-interval": f"{_MONITOR_INTERVAL_S:g}",
    "shutdown-timeout": f"{SHUTDOWN_TIMEOUT_S:g}",
    "local-addr": "found by itself",
    "log-dir": "a temporary folder",
}
"""What holds where a launch flag is not given, in words: beside the values, for the help."""


@dataclass(frozen=True)
class LaunchPlan:
    """One agent's part of a launch."""

    processes: int  # to start on this machine
    min_nodes: int = 1  # min_nodes, max_nodes: machines that the run needs, and takes
    max_nodes: int = 1
    endpoint: str = "localhost:0"  # where they meet; ``run_id`` tells runs apart there
    run_id: str = DEFAULTS["rdzv-id"]
    options: Mapping[str, str] = field(default_factory=dict)  # of the rendezvous (``--rdzv-conf``)
    is_host: bool | None = None  # whether the store is kept here; None: if the endpoint names this machine
    node_rank: int | None = None  # this machine's number, where it was given one
    max_restarts: int = 0  # how often all processes are started again after one of them crashed
    monitor_interval_s: float = _MONITOR_INTERVAL_S
    shutdown_timeout_s: float = SHUTDOWN_TIMEOUT_S  # how long processes that were asked to stop may take
    local_addr: str | None = None  # this machine's address for the others; None: found by torch
    log_dir: Path | None = None  # where other ranks' output goes; None: a temporary folder

    @property
    def is_elastic(self) -> bool:
        """Whether the number of machines may change."""
        return self.min_nodes != self.max_nodes


def plan_launch(flags: Mapping[str, str], *, processes: int) -> LaunchPlan:
    """The plan that launch flags describe.

    Raises:
        ConfigError: a value is wrong, or it is not said where several machines meet.
    """
    min_nodes, max_nodes = node_range(flags.get("nnodes", DEFAULTS["nnodes"]))
    endpoint, is_host, local_addr = _meeting_place(flags, max_nodes)
    restarts = ELASTIC_RESTARTS if min_nodes != max_nodes else 0
    return LaunchPlan(
        processes=processes,
        min_nodes=min_nodes,
        max_nodes=max_nodes,
        endpoint=endpoint,
        is_host=is_host,
        run_id=flags.get("rdzv-id", LaunchPlan.run_id),
        options=_options(flags.get("rdzv-conf", "")),
        node_rank=int(flags["node-rank"]) if "node-rank" in flags else None,
        max_restarts=int(flags.get("max-restarts", restarts)),
        monitor_interval_s=_seconds(flags, "monitor-interval", _MONITOR_INTERVAL_S, least=0.01),
        shutdown_timeout_s=_seconds(flags, "shutdown-timeout", SHUTDOWN_TIMEOUT_S),
        local_addr=flags.get("local-addr", local_addr),
        log_dir=Path(flags["log-dir"]) if "log-dir" in flags else None,
    )


def node_range(text: str) -> tuple[int, int]:
    """``"4"`` is (4, 4), ``"1:4"`` is (1, 4).

    Raises:
        ConfigError: it is neither.
    """
    first, colon, second = text.partition(":")
    parts = (first, second if colon else first)
    if not all(part.isdigit() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
        raise ConfigError(f"--nnodes: expected N or MIN:MAX, found {text!r}", "for example --nnodes 2, --nnodes 1:4")
    return int(parts[0]), int(parts[1])


def _meeting_place(flags: Mapping[str, str], max_nodes: int) -> tuple[str, bool | None, str | None]:
    """Endpoint, whether it is here, and this machine's address, where those are known."""
    wanted = flags.get("rdzv-backend")
    if wanted not in (None, "c10d", "static"):
        raise ConfigError(f"--rdzv-backend: expected c10d or static, found {wanted!r}")
    if flags.get("standalone") or (max_nodes == 1 and "rdzv-endpoint" not in flags and wanted != "static"):
        if max_nodes > 1:
            raise ConfigError("--standalone is for one machine, --nnodes asks for more", "leave one of them out")
        return "localhost:0", True, "localhost"
    endpoint = flags.get("rdzv-endpoint", "")
    by_rank = "node-rank" in flags and wanted is None and not endpoint
    if wanted == "static" or by_rank or (not endpoint and "master-addr" in flags):
        return _master(flags, endpoint, max_nodes), flags.get("node-rank", "0") == "0", None
    if not endpoint:
        raise ConfigError(
            "--nnodes asks for several machines, and nothing says where they meet",
            "add --rdzv-endpoint HOST:PORT (HOST is one of them) to the command on each",
        )
    return _with_port(endpoint, str(_ENDPOINT_PORT)), None, None


def _master(flags: Mapping[str, str], endpoint: str, max_nodes: int) -> str:
    address = flags.get("master-addr", "" if max_nodes > 1 else "localhost")
    if not endpoint and not address:
        raise ConfigError("several machines need --master-addr", "name the machine of --node-rank 0 on each of them")
    if max_nodes > 1 and "node-rank" not in flags:
        raise ConfigError(
            "several machines with fixed ranks need --node-rank",
            "0 on the first, 1 on the next; or use --rdzv-endpoint",
        )
    return _with_port(endpoint or address, flags.get("master-port", str(MASTER_PORT)))


def _with_port(endpoint: str, default_port: str) -> str:
    host, colon, port = endpoint.rpartition(":")
    if not colon or "]" in port:
        return f"{endpoint}:{default_port}"
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"expected HOST:PORT, found {endpoint!r}")
    return endpoint


def _options(text: str) -> dict[str, str]:
    """``key=value,key=value`` of ``--rdzv-conf``."""
    found = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--rdzv-conf: expected key=value,key=value, found {item!r}")
        key, value = key.strip(), value.strip()
        if key.endswith("timeout") and not value.isdecimal():
            raise ConfigError(f"--rdzv-conf: {key}: expected whole seconds, found {value!r}")
        found[key] = value
    return found


def _seconds(flags: Mapping[str, str], flag: str, default: float, *, least: float = 0.0) -> float:
    try:
        value = float(flags.get(flag, default))
    except ValueError:
        value = -1.0
    if not least <= value < 1e9:
        raise ConfigError(f"--{flag}: expected seconds, found {flags[flag]!r}")
    return value
