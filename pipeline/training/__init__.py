"""Training: the loop of both stages, what goes into it, and what it leaves in a run folder."""
