"""Files of tensors: readers that never run code, and the streaming writer. They know no model."""
