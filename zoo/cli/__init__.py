"""The command line: `app`, and the commands by theme, which import torch only when they run."""
