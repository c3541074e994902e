"""Proofs: tracking."""
