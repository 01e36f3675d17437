"""Optimizers: one file, one rule, one paper. A file added here is found by notation without being listed."""
