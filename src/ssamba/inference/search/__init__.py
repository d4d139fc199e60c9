"""Similarity of recordings: a space to compare them in, an index on disk, search in it and near-duplicates."""
