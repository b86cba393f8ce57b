"""Streams that outlive their gateway: the token that names one, and how another gateway goes on with it."""
