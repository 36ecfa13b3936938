"""What the families stand on: configs, results, and the bases of their models."""
