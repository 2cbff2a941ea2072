"""The page on which a run is tried: draw, complete, score, reconstruct."""
