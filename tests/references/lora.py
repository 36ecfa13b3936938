"""LoRA as ``peft`` and ``adapters`` compute it."""

from tests.references.adapter_libraries import adapters_case, peft_linear
from tests.references.case import Adapter

ADAPTERS: dict[str, Adapter] = {"adapters.init": adapters_case, "peft.get_peft_model": peft_linear}
