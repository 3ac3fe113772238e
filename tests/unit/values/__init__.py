"""The values' models, and what is generated from them."""
