"""Commands that put recordings through a model: ``embed``, ``predict``, ``reconstruct``."""
