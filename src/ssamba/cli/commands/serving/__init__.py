"""Commands that answer over the network."""
