"""Models computed faster than transformers' own modules do it, and with the same result."""
