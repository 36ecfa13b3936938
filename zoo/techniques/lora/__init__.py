"""LoRA (Hu et al., 2021), DoRA (Liu et al., 2024) and IA3 (Liu et al., 2022)."""

from zoo.techniques.lora.technique import IA3, LoRA, add_update, linear_sites, merge, switch, unmerge

__all__ = ["IA3", "LoRA", "add_update", "linear_sites", "merge", "switch", "unmerge"]
