"""Optimizers, and everything that changes over a run."""
