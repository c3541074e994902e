"""Draft heads: small modules that propose tokens from a language model's hidden states."""
