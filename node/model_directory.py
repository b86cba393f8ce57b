"""A first look at a model directory, without torch: what is wrong is said before a process is started for it.

The worker decides in the end; this only catches what every start with that directory would run into.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mesh.errors import Misconfigured

if TYPE_CHECKING:
    from pathlib import Path

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json", "tiktoken.model")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def check_model_directory(path: Path) -> None:
    """Raise Misconfigured, in one line that says what to do, when `path` cannot be a model that is served from here."""
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        raise Misconfigured(f"model directory {path} {what}; give the folder that holds config.json (--model ID=PATH)")
    _check_config(path / "config.json")
    if not any((path / name).is_file() for name in _TOKENIZERS):
        raise Misconfigured(f"{path} has no tokenizer (tokenizer.json); download the model's tokenizer files into it")
    if not any(path.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
        if pickles:
            raise Misconfigured(
                f"{path} holds its weights as a pickle ({pickles[0]}), which can run code; convert it to safetensors"
            )
        raise Misconfigured(f"{path} has no *.safetensors file; download the model's weights in the safetensors format into it")


def _check_config(path: Path) -> None:
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Misconfigured(f"{path.parent} has no config.json; give the folder of a Hugging Face model") from None
    except (OSError, ValueError) as error:
        raise Misconfigured(f"cannot read {path}: {error}; download the model's config.json again") from error
    if not isinstance(config, dict):
        raise Misconfigured(f"{path} is not a JSON object; download the model's config.json again")
