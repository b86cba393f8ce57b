"""The torch process: only this package imports torch and transformers."""
