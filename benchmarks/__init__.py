"""One script a claim; each prints one JSON object a line."""
