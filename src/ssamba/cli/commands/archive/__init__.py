"""Collections of recordings: an index, search in it, near-duplicates."""
