"""RWKV-4 in PyTorch."""
