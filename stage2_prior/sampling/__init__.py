"""Drawing code maps from priors, completing known ones, and scoring them."""
