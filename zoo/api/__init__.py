"""The calls that sit on everything: `zoo.create`, `zoo.info`, `zoo.inspect`."""
