"""Tasks: structured state spaces."""
