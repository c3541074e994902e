"""Proofs: multimodal models."""
