"""Fine-tuning a classifier: recipe, task, folds, report."""
