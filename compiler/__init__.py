"""Checkpoint to units in a store. The only package that needs torch and transformers."""
