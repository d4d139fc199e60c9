"""What lets a run go on after whatever has happened to its process, its files or its data."""
