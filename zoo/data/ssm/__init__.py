"""Data sets: structured state spaces."""
