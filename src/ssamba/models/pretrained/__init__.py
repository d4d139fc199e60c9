"""Everything that knows a weight format: model directories, official checkpoints, their names."""
