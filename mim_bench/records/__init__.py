"""Records on disk: run folders, the results store, and what must hold before rows are compared."""
