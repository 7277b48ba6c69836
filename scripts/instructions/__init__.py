"""Builders of the bundled model's instruction data; ``bundled_instructions.py`` runs them."""
