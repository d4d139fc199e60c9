"""Self-supervised pretraining: recipe, task, run."""
