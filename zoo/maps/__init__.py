"""The map language: how a public layout's names, tensors and config become ours, and back."""
