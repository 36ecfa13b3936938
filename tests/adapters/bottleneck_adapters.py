"""Bottleneck adapters and their fusion as ``adapters`` computes them."""

from tests.adapters.adapter_libraries import adapters_case
from tests.adapters.case import Adapter

ADAPTERS: dict[str, Adapter] = {"adapters.init": adapters_case}
