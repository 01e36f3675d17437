"""Recursion: what happens when levels are stacked."""
