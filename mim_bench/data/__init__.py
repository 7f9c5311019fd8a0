"""Images: sources, decoding, crops, splits, and batches."""
