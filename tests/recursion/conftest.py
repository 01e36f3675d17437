"""What tests of compiled towers share."""

import pytest


@pytest.fixture
def interpreted(monkeypatch):
    """Graphs are run operation by operation, not compiled: what is traced is tested, in no time. A list of them."""
    graphs = []

    def keep(graph, inputs, **more):
        graphs.append(graph)
        return graph

    monkeypatch.setattr("recursion.accelerate.compiled.compile_graph", keep)
    return graphs
