"""One file per technique: a small frozen dataclass that says what, and an ``apply`` from a model to a model."""
