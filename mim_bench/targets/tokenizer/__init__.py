"""The discrete VAE that turns an image into visual words (DALL-E: Ramesh et al. 2021, arXiv 2102.12092)."""
