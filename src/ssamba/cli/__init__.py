"""The command line: parsing, one module for each subcommand, no logic of its own."""
