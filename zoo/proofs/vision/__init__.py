"""Proofs: vision."""
