"""Metrics, simple classifiers on frozen features, speed measurements."""
