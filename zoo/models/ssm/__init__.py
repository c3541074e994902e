"""Structured state spaces: the papers, from LSSL to Mamba-360."""
