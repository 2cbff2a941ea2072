"""The folder of a run: where things lie in it, what its files hold, how its models are loaded."""
