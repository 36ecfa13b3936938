"""Distillation: what a student learns from a teacher, as terms of one objective."""
