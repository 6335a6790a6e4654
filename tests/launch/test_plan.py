"""Launch flags to a plan: torchrun's combinations, and what each mistake is told."""

import pytest

from automodel_cli.errors import ConfigError
from automodel_cli.launch.plan import (
    ELASTIC_RESTARTS,
    SHUTDOWN_TIMEOUT_S,
    node_range,
    plan_launch,
)


def test_one_machine_needs_no_place_to_meet():
    plan = plan_launch({"nproc-per-node": "8"}, processes=8)
    assert (plan.is_host, plan.endpoint, plan.local_addr) == (True, "localhost:0", "localhost")
    assert (plan.processes, plan.min_nodes, plan.max_nodes, plan.max_restarts) == (8, 1, 1, 0)
    assert plan.shutdown_timeout_s == SHUTDOWN_TIMEOUT_S > 300
    assert plan_launch({"standalone": "true"}, processes=2) == plan_launch({}, processes=2)


@pytest.mark.parametrize(
    ("flags", "is_host", "endpoint"),
    [
        ({"nnodes": "2", "rdzv-endpoint": "host:29500"}, None, "host:29500"),
        ({"nnodes": "1:4", "rdzv-endpoint": "host"}, None, "host:29400"),
        ({"nnodes": "2", "rdzv-endpoint": "[fe80::1]:7"}, None, "[fe80::1]:7"),
        ({"nnodes": "2", "rdzv-backend": "c10d", "rdzv-endpoint": "h:1", "node-rank": "1"}, None, "h:1"),
        ({"nnodes": "2", "node-rank": "1", "master-addr": "h"}, False, "h:29500"),
        ({"nnodes": "2", "node-rank": "1", "master-addr": "h", "master-port": "7"}, False, "h:7"),
        ({"nnodes": "2", "node-rank": "0", "master-addr": "h"}, True, "h:29500"),
        ({"rdzv-backend": "static"}, True, "localhost:29500"),
        ({"rdzv-endpoint": "h:5"}, None, "h:5"),
    ],
)
def test_where_several_machines_meet(flags, is_host, endpoint):
    plan = plan_launch(flags, processes=1)
    assert (plan.is_host, plan.endpoint) == (is_host, endpoint)


def test_all_of_the_rest():
    flags = {
        "nnodes": "1:4", "rdzv-endpoint": "h:1", "rdzv-id": "7", "max-restarts": "5", "monitor-interval": "2",
        "shutdown-timeout": "90", "local-addr": "10.0.0.1", "log-dir": "logs", "rdzv-conf": "join_timeout=5, x=y",
    }  # fmt: skip
    plan = plan_launch(flags, processes=2)
    assert (plan.run_id, plan.max_restarts, plan.monitor_interval_s, plan.shutdown_timeout_s) == (
        "7",
        5,
        2.0,
        90.0,
    )
    assert plan.options == {"join_timeout": "5", "x": "y"}
    assert (plan.local_addr, str(plan.log_dir)) == ("10.0.0.1", "logs")


def test_an_elastic_run_survives_some_losses_without_being_told_to():
    flags = {"nnodes": "1:4", "rdzv-endpoint": "h:1"}
    assert plan_launch(flags, processes=1).is_elastic
    assert plan_launch(flags, processes=1).max_restarts == ELASTIC_RESTARTS
    assert plan_launch({**flags, "max-restarts": "0"}, processes=1).max_restarts == 0
    assert plan_launch({**flags, "nnodes": "4"}, processes=1).max_restarts == 0


@pytest.mark.parametrize("text", ["", "x", "0", "2:1", "1:", ":2", "1:2:3", "-1", "1.5"])
def test_node_ranges_that_are_none(text):
    with pytest.raises(ConfigError, match="--nnodes: expected N or MIN:MAX"):
        node_range(text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"nnodes": "2"}, "nothing says where they meet"),
        ({"nnodes": "2", "standalone": "true"}, "--standalone is for one machine"),
        ({"nnodes": "2", "node-rank": "1"}, "need --master-addr"),
        ({"nnodes": "2", "master-addr": "h"}, "need --node-rank"),
        ({"nnodes": "2", "rdzv-backend": "etcd"}, "expected c10d or static"),
        ({"nnodes": "2", "rdzv-endpoint": "h:port"}, "expected HOST:PORT"),
        ({"nnodes": "2", "rdzv-endpoint": ":1"}, "expected HOST:PORT"),
        ({"rdzv-conf": "timeout"}, "expected key=value"),
        ({"rdzv-conf": "read_timeout=0.5"}, "read_timeout: expected whole seconds, found '0.5'"),
        ({"shutdown-timeout": "long"}, "--shutdown-timeout: expected seconds, found 'long'"),
        ({"shutdown-timeout": "-1"}, "expected seconds"),
        ({"monitor-interval": "0"}, "expected seconds"),
    ],
)
def test_mistakes(flags, message):
    with pytest.raises(ConfigError, match=message):
        plan_launch(flags, processes=1)
