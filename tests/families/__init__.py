"""What the common tests need to know of each registered family, one module each, found by the family's name.

A module gives ``tiny_config(draw)``, a small config drawn over everything the family allows, and ``inputs(draw, config)``, a
`tests.strategies.Batch`. Where the transformers library has the model, ``LAYOUT`` names the map, ``CLASSES`` its classes by task (None:
the bare encoder) and ``oracle(config, task, options)`` builds one, untrained, for a config of ours. Optional: ``states(output)`` where a
model has several streams.
"""
