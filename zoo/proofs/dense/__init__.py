"""Proofs: dense prediction."""
