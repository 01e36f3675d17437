"""Ablation: does another level pay? A tower is cut at each depth, and all cuts are given the same total cost."""
