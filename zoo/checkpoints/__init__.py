"""Checkpoints: find, fetch, convert, load, save and verify them."""
