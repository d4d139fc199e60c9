"""The product of a linear layer. Forms: ``naive`` and ``cpu``."""
