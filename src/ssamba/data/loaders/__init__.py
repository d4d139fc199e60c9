"""From a plan's rows to batches of decoded audio."""
