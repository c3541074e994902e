"""Proofs: structured state spaces."""
