"""Sweeps on Slurm: jobs, their ledger, and their status."""
