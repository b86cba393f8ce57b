"""Train the demo model: `python -m node.worker.demo.train --out DIR`. About ten minutes on two CPU cores.

1. The same seed, number of steps and number of threads give the same weights on the same machine.
2. `DIR` receives the finished model only at the end; `DIR/checkpoint.pt` lets an interrupted run go on.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from node.worker.demo.batches import IGNORED, Batch, batch
from node.worker.demo.tokenizer import build_tokenizer
from node.worker.demo.wiring import wire_copying

# A second thread costs more in waiting than it brings: the matrices are small.
THREADS = 1
PEAK_RATES = (3e-3, 4e-3)  # of the matrices inside the blocks, and of the embedding and the norms
WARM_UP = 40
CHECKPOINT_EVERY = 100
# Clients sample at temperature 1 unless told otherwise, which a small model bears badly: its logits are made this much steeper.
STEEPER = 1.5


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return a fresh model with about 1.4 million parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=5,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    wire_copying(model)
    return model


class Training:
    """A model, its optimizers and the number of steps they have made."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, seed: int, steps: int) -> None:
        self.tokenizer = tokenizer
        self.seed = seed
        self.steps = steps
        self.step = 0
        self.loss = math.nan  # smoothed over about 50 steps
        self.model = build_model(tokenizer, seed)
        # Muon halves the steps that AdamW needs here; it is made for the matrices inside the blocks, not for embeddings.
        inner = [p for name, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in name]
        outer = [p for name, p in self.model.named_parameters() if p.ndim != 2 or "embed" in name]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(inner, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(outer, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def advance(self) -> None:
        """Make one step."""
        for optimizer, peak in zip(self.optimizers, PEAK_RATES, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate(self.step, self.steps)
        loss = loss_of(self.model, batch(self.tokenizer, self.seed, self.step))
        self.model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self.loss = loss.item() if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * loss.item()

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs; the file appears whole or not at all."""
        state = {
            "run": (self.seed, self.steps),
            "step": self.step,
            "loss": self.loss,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def restore(self, path: Path) -> None:
        """Go on where `save` was; raises ValueError when that was another run."""
        state = torch.load(path, weights_only=True)
        if tuple(state["run"]) != (self.seed, self.steps):
            raise ValueError(f"{path} belongs to seed and steps {state['run']}: delete it, or use these")
        self.step, self.loss = state["step"], state["loss"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def rate(step: int, steps: int) -> float:
    """Return the learning rate of `step` as a part of its peak: up, flat for a third, then down along a cosine."""
    done = step / steps
    fall = 1.0 if done < 0.33 else 0.5 * (1 + math.cos(math.pi * (done - 0.33) / 0.67))
    return min(1.0, (step + 1) / WARM_UP) * max(0.01, fall)


def loss_of(model: LlamaForCausalLM, examples: Batch) -> torch.Tensor:
    """Return the mean cross-entropy over the labelled tokens; the head runs only where there is a label."""
    targets = examples.labels[:, 1:]
    labelled = targets != IGNORED
    # Measured: the fused attention is slower on many short rows, and much faster on few long ones.
    model.set_attn_implementation("eager" if targets.shape[1] < 256 else "sdpa")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=examples.ids, use_cache=False).last_hidden_state
        scores = model.lm_head(hidden[:, :-1][labelled])
    return torch.nn.functional.cross_entropy(scores.float(), targets[labelled])


def export(training: Training, folder: Path) -> None:
    """Write the model as a Hugging Face folder: bfloat16 on disk, to be computed in float32."""
    model = training.model.eval()
    with torch.no_grad():
        model.model.norm.weight *= STEEPER
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        max_new_tokens=512,
        do_sample=False,
    )
    model.save_pretrained(folder)
    training.tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "infermesh_dtype": "float32"}, indent=2) + "\n")


def train(folder: Path, *, seed: int, steps: int) -> Training:
    """Train from the checkpoint in `folder`, or from nothing, and export the result there."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    training = Training(build_tokenizer(seed), seed=seed, steps=steps)
    if checkpoint.exists():
        training.restore(checkpoint)
    started, first = time.monotonic(), training.step
    while training.step < steps:
        training.advance()
        if training.step % 20 == 0:
            _report(training, (time.monotonic() - started) / (training.step - first))
        if training.step % CHECKPOINT_EVERY == 0:
            training.save(checkpoint)
    export(training, folder)
    checkpoint.unlink(missing_ok=True)
    return training


def _report(training: Training, seconds_per_step: float) -> None:
    left = (training.steps - training.step) * seconds_per_step
    print(f"step {training.step}/{training.steps}  loss {training.loss:.4f}  {left / 60:.1f} min left", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder that receives the model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2400)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    train(options.out, seed=options.seed, steps=options.steps)


if __name__ == "__main__":
    main()
