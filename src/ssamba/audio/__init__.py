"""Audio in: decoding, resampling, log-mel features."""
