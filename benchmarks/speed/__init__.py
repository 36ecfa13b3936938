"""Speed against what users would pick instead: the same weights, the same machine, the same run."""
