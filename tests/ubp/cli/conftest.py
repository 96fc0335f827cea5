"""A Ray cluster of two nodes on this machine, for whoever asks for it."""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

STORE = 80 * 2**20  # bytes of a node's object store: nothing large goes through it

# On a busy machine a node may take minutes to begin, and seconds to answer. Ray reads these when it is imported.
for name, value in {"RAY_raylet_start_wait_time_s": "240", "RAY_health_check_timeout_ms": "60000"}.items():
    os.environ.setdefault(name, value)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of a node with one core and one with two."""
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster as Nodes

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE}
        made = Nodes(initialize_head=True, head_node_args=head)
        second = made.add_node(num_cpus=2, object_store_memory=STORE)
        made.wait_for_nodes()
        patch.setenv("RAY_ADDRESS", made.address)
        yield SimpleNamespace(cluster=made, second=second)
        made.shutdown()
