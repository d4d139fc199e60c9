"""Commands about the files of a model: ``info``, ``convert``, ``export``, ``push``."""
