"""The ViT, the masked autoencoder, and masks."""
