"""Prefix tuning (Li & Liang, 2021)."""

from zoo.techniques.prefix.technique import PrefixTuning, eject

__all__ = ["PrefixTuning", "eject"]
