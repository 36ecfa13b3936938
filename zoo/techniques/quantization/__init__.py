"""Quantization: while training, after training, and with integers alone."""

from zoo.techniques.quantization.technique import (
    Bare,
    FullyQt,
    IBert,
    Int8,
    Q8Bert,
    QBert,
    WeightOnly,
    check_dense,
    detached,
    linears,
    norms_of,
    placed,
    put_on_grid,
    replace_table,
    stored_bytes,
    tables,
)

__all__ = [
    "Bare",
    "FullyQt",
    "IBert",
    "Int8",
    "Q8Bert",
    "QBert",
    "WeightOnly",
    "check_dense",
    "detached",
    "linears",
    "norms_of",
    "placed",
    "put_on_grid",
    "replace_table",
    "stored_bytes",
    "tables",
]
