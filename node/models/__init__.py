"""The models that ship with the package: data, and where it lies."""

from pathlib import Path

DEMO_MODEL_ID = "infermesh-demo"


def demo_model_path() -> Path:
    """Return the folder of the demo model: config, tokenizer and weights."""
    return Path(__file__).parent / DEMO_MODEL_ID
