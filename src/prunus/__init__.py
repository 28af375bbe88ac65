"""Prunus makes trained PyTorch networks smaller and faster, and proves it."""
