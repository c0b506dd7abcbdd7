"""Clusters for tests; ``nodes`` closes their processes, this their proxies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster.clusters import Cluster
from tests.support.harness import Nodes


@pytest.fixture
def make_cluster(nodes: Nodes) -> Iterator[Callable[..., Cluster]]:
    """``Cluster(nodes, …)``, closed at the end. Nothing is started yet."""
    made: list[Cluster] = []

    def make(*arguments: Any, **options: Any) -> Cluster:
        made.append(Cluster(nodes, *arguments, **options))
        return made[-1]

    try:
        yield make
    finally:
        for cluster in made:
            cluster.close()


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """Three nodes, whole and ready."""
    cluster = make_cluster()
    cluster.start()
    cluster.wait_whole()
    cluster.wait_ready()
    return cluster
