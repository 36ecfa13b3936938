"""K-Adapter (Wang et al., 2020)."""
