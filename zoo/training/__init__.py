"""Training: optimizers, learning-rate schedules, fine-tuning, distillation."""
