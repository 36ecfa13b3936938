"""Tasks: heads, losses, labels, pre-training objectives, collation. `zoo.registry.tasks` lists them
without torch.
"""
