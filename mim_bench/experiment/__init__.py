"""One run from end to end, sweeps, and what they cost."""
