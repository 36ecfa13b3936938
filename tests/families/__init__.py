"""What the common tests need to know of each registered family, one module each, found by the
family's name.

A module gives ``tiny_config(draw)``, a small config drawn over everything the family allows, and
``inputs(draw, config, **options)``, a `tests.strategies.Batch`. Optional are:

- ``LAYOUT``, ``CLASSES`` and ``oracle(config, task, options)`` where the transformers library has
  the model: the map, its classes by task (None: the bare encoder), and one of them, untrained, for a
  config of ours.
- ``DEFAULT``: the variant whose config the class of transformers has by default.
- ``states(output)`` where a model has several streams: the last states by the mask they run along
  with.
- ``SMALL``, fields of the fixed small config; ``small_fields(fields)``, where its config has them elsewhere;
  ``small_batch()``, a fixed ragged batch; ``labels(task, model, batch, seed)``; ``TASKS``, those that it knows
  labels for, all unless it is there.
"""
