"""The discrete VAE that turns an image into tokens (DALL-E: Ramesh et al. 2021, arXiv 2102.12092)."""
