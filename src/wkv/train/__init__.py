"""Training: RWKV's published recipe on top of Hugging Face's Trainer."""
