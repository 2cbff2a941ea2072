"""Training: both stages around the one loop, and what it leaves in a run folder."""
