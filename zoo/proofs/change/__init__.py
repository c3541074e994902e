"""Proofs: change detection."""
