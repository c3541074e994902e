"""Recurrent networks and linear attention."""
