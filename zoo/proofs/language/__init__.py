"""Proofs: language models."""
