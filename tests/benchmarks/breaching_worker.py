"""The public framework's side of ``breaching_speed``; runs in an environment that has it.

    python breaching_worker.py FOLDER

Reads ``problem.json`` and ``problem.safetensors`` of the folder, attacks every target from every
start, one after another, and writes ``answers.safetensors`` and ``seconds.json``. Needs nothing of
this repository. ``TDError`` is also what the other side attacks.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class TDError(nn.Module):
    """Q(s, a) - (r + discount Q'(s', pi'(s'))) of rows [s, a, r, s'], (B, width) to (B,).

    The critic's parameters are the module's only ones; target networks are constants.
    """

    def __init__(
        self, state: int, action: int, hidden: Sequence[int], layer_norm: bool, discount: float
    ) -> None:
        super().__init__()
        self.critic = dense([state + action, *hidden, 1], layer_norm)
        target_critic = dense([state + action, *hidden, 1], layer_norm).requires_grad_(False)
        policy = dense([state, *hidden, action], layer_norm).append(nn.Tanh())
        self.targets = (target_critic, policy.requires_grad_(False))  # a tuple is not registered
        self._sizes, self._discount = [state + action, 1, state], discount

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Weights by name, of all three networks."""
        for name, network in zip(
            ("critic", "target_critic", "policy"), (self.critic, *self.targets), strict=True
        ):
            prefix = f"{name}."
            network.load_state_dict(
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            )

    def forward(self, rows: Tensor) -> Tensor:
        known, reward, after = rows.split(self._sizes, dim=1)
        critic, policy = self.targets
        bootstrapped = critic(torch.cat([after, policy(after)], dim=1))
        return (self.critic(known) - reward - self._discount * bootstrapped).squeeze(1)


def dense(sizes: Sequence[int], layer_norm: bool) -> nn.Sequential:
    """Linear layers with ReLU, and LayerNorm before it if wanted, between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers.append(nn.Linear(inputs, outputs))
        if len(layers) and outputs is not sizes[-1]:
            layers += [nn.LayerNorm(outputs, elementwise_affine=False)] if layer_norm else []
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class Scaled(nn.Module):
    """A model of data in units of deviations from a mean, as image models are of pixels."""

    def __init__(self, model: nn.Module, center: Tensor, unit: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("center", center)
        self.register_buffer("unit", unit)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.center + self.unit * x)


class HalfSquare(nn.Module):
    """0.5 error^2, mean over the batch; the framework's labels are not used."""

    def forward(self, errors: Tensor, labels: Tensor) -> Tensor:
        return (0.5 * errors**2).mean()


class Metadata(SimpleNamespace):
    """What the framework wants to know of the data; read both as attributes and as keys."""

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)


def import_breaching() -> Any:
    """The framework. It imports torchvision, whose compiled part may not fit a CPU build of torch.

    The attacks use nothing of it, so declaring the operators that it looks up is enough.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        globals()["_declared"] = library  # operators go with the object that declared them
    import breaching

    return breaching


class PublicAttack:
    """The framework's optimisation-based attack: Euclidean matching, Adam, cosine decay."""

    def __init__(self, model: nn.Module, width: int, settings: dict[str, Any]) -> None:
        framework = import_breaching()
        config = framework.get_attack_config(
            "_default_optimization_attack",
            overrides=[
                f"optim.step_size={settings['learning_rate']}",
                f"optim.max_iterations={settings['iterations']}",
                "optim.step_size_decay=cosine-decay",
            ],
        )
        self._attacker = framework.attacks.prepare_attack(model, HalfSquare(), config)
        self._parameters = [p.detach() for p in model.parameters()]
        self._metadata = Metadata(shape=[width], modality="vision", task="regression")

    def __call__(self, gradient: list[Tensor], start: Tensor) -> Tensor:
        """The best of all iterates, (batch, width), from ``start`` of that shape."""
        # Scaled to the other side's objective, ||g~ - g||^2 / ||g||^2.
        square = sum(float(g.square().sum()) for g in gradient)
        self._attacker.objective.scale = 2 / square
        payload = {"parameters": self._parameters, "buffers": [], "metadata": self._metadata}
        shared = {
            "gradients": gradient,
            "buffers": None,
            "metadata": {
                "num_data_points": len(start),
                "labels": torch.zeros(len(start)),
                "local_hyperparams": None,
            },
        }
        answer, _ = self._attacker.reconstruct([payload], [shared], {}, initial_data=start)
        return answer["data"]


def main(folder: Path) -> None:
    """Attacks all targets and writes the answers."""
    torch.set_num_threads(1)
    settings = json.loads((folder / "problem.json").read_text())
    tensors = load_file(folder / "problem.safetensors")
    error = TDError(**settings["networks"])
    error.load(tensors)
    model = Scaled(error, tensors["center"], tensors["unit"])
    names = [n for n, _ in error.named_parameters()]
    starts = tensors["starts"]
    attack = PublicAttack(model, starts.shape[-1], settings)

    def gradient(target: int) -> list[Tensor]:
        return [tensors[f"gradient.{name}"][target] for name in names]

    attack(gradient(0), starts[0])  # the first run compiles and imports
    answers, seconds = [], []
    for target in range(settings["targets"]):
        wall, processor = time.perf_counter(), time.process_time()
        found = [attack(gradient(target), start) for start in starts]
        seconds.append([time.process_time() - processor, time.perf_counter() - wall])
        answers.append(torch.stack(found))
    save_file({"answers": torch.stack(answers)}, folder / "answers.safetensors")
    (folder / "seconds.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
