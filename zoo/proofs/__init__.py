"""Proofs: a paper's claim as measurements and inequalities; a file per system measures."""

from zoo.proofs.base import Inequality, Measurement, Proof, check

__all__ = ["Inequality", "Measurement", "Proof", "check"]
