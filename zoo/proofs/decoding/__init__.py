"""Proofs: decoding language models."""
