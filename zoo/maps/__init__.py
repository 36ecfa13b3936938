"""The map language: how a public layout's names, tensors and config become the zoo's, and back.

From the bottom up: ``templates`` and ``ops`` (names with placeholders, operations), ``rules`` and
``config_map`` (what a map says), ``plans`` and ``planning`` (what a conversion will do),
``key_map``, ``parsing`` (from a table to a checked map), ``layouts`` (which maps there are).
"""
