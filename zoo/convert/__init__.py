"""From any public checkpoint to a verified safetensors file, and back."""
