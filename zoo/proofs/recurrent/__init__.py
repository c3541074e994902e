"""Proofs: recurrent networks and linear attention."""
