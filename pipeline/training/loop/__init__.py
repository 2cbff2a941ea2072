"""The training loop itself: it knows neither stage, only what `task.py` names."""
