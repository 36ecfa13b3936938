"""Tasks: heads, losses, labels, pre-training objectives, collation. `zoo.tasks.catalogue` lists them without torch."""
