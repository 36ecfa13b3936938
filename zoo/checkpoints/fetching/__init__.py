"""Fetching: sources of checkpoints, downloads that can be resumed, and the cache they end in."""
