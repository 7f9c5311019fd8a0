"""Encoders in and out: other people's weights under timm's names, and ours for other libraries."""
