"""Tasks: one file, one family of problems at the bottom of a tower. A file added here is found by notation."""
