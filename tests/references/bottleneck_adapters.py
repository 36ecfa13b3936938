"""Bottleneck adapters and their fusion as ``adapters`` computes them."""

from tests.references.adapter_libraries import adapters_case
from tests.references.case import Adapter

ADAPTERS: dict[str, Adapter] = {"adapters.init": adapters_case}
