"""Linear and nearest-neighbour probes of a frozen encoder's features, next to log-mel statistics."""
