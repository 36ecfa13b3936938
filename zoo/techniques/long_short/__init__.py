"""Long-short range attention (Wu et al., 2020)."""
