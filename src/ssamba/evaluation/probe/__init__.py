"""What a frozen encoder knows: simple classifiers on its features, beside plain log-mel statistics."""
