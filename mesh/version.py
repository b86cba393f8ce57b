"""The version, in one place: the package metadata, the hello of a link and the HTTP answers read it here."""

__version__ = "0.1.0"
