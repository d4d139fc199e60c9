"""Several classifiers on one encoder: its pass is made once, and each classifier reads the tokens."""
