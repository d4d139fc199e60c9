"""What lies between the socket and the answers: bodies, parameters, limits, headers, logs, metrics."""
