"""The bidirectional Mamba mixer: ``naive`` is the truth, ``cpu``, ``cuda`` and ``triton`` the fast forms."""
