"""The command `gen`: it parses, calls the Python API and prints."""
