"""What models read: masking, collators, regions, knowledge."""
