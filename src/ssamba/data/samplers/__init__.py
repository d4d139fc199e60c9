"""Which clip is read in which step, as pure functions of (seed, step)."""
