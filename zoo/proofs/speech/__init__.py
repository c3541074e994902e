"""Proofs: speech."""
