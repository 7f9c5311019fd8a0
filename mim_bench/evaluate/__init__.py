"""Protocols that evaluate an encoder, and what they share."""
