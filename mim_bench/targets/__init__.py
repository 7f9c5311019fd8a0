"""One file for each target; a module path is part of a run's identity."""
