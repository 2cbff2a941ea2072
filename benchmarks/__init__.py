"""One script for each measured result in the documentation; most of them print one JSON object per line."""
