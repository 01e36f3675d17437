"""Analysis: what a tower does: chaos probe, cost, learned depth and pruning, ensembles."""
