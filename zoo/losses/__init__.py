"""Losses that PyTorch and its companions lack."""
