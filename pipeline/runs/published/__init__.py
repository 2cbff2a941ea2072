"""Runs that are published: those that come with gen, and those of the Hugging Face Hub."""
