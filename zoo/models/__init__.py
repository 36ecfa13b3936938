"""One file per family, its variants as data beside it."""
