"""The training loop, pre-training, fits, checkpoints, and several processes."""
