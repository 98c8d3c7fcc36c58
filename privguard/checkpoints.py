"""The whole state of a cell between two rounds: a killed run goes on with the same numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from privguard.audit.captures import CellCaptures
from privguard.clients import Client
from privguard.federation import RoundCost
from privguard.records import Evaluation

if TYPE_CHECKING:
    from privguard.training import CellTraining


@dataclass
class Checkpoint:
    """All that is needed to go on: tensors by name and plain data."""

    tensors: dict[str, Tensor]
    plain: dict[str, Any]


def take_checkpoint(training: CellTraining) -> Checkpoint:
    """The whole state between two rounds."""
    federation = training.federation
    tensors, plain = training.captures.pack()
    tensors = {f"captures.{name}": tensor for name, tensor in tensors.items()}
    tensors["weights"] = training.agent.weights
    tensors["target_weights"] = training.agent.target_weights
    tensors["defense_generator"] = training.defense_generator.get_state()
    tensors["server_generator"] = training.server_generator.get_state()
    if federation.memory is not None:
        tensors["memory"] = federation.memory
    optimizer = federation.server.optimizer.state_dict()["state"]
    for index, moments in optimizer.items():
        tensors |= {f"adam.{index}.{name}": value for name, value in moments.items()}
    for client in federation.clients:
        for name, tensor in client.replay.tensors().items():
            tensors[f"client.{client.index}.replay.{name}"] = tensor
    return Checkpoint(
        tensors,
        {
            "round": training.round,
            "seconds": training.seconds,
            "evaluations": [evaluation.model_dump() for evaluation in training.evaluations],
            "captures": plain,
            "captured_rows": sorted(federation.captured_rows),
            "void_rounds": federation.void_rounds,
            "probe_rng": training.probe_rng.bit_generator.state,
            "defense": federation.session.state(),
            "costs": [list(cost) for cost in federation.costs],
            "accountants": [a.state() if a else None for a in federation.accountants],
            "clients": [_client_state(client) for client in federation.clients],
        },
    )


def restore(training: CellTraining, checkpoint: Checkpoint) -> None:
    """Puts back a state that ``checkpoint`` gave; training goes on with the same numbers."""
    tensors, plain, federation = checkpoint.tensors, checkpoint.plain, training.federation
    training.round, training.seconds = plain["round"], plain["seconds"]
    training.evaluations = [Evaluation(**entry) for entry in plain["evaluations"]]
    training.captures = CellCaptures.unpack(
        {
            name.removeprefix("captures."): tensor
            for name, tensor in tensors.items()
            if name.startswith("captures.")
        },
        plain["captures"],
    )
    training.agent.weights.copy_(tensors["weights"])
    training.agent.target_weights.copy_(tensors["target_weights"])
    training.defense_generator.set_state(tensors["defense_generator"])
    training.server_generator.set_state(tensors["server_generator"])
    training.probe_rng.bit_generator.state = plain["probe_rng"]
    federation.costs = [RoundCost(*cost) for cost in plain.get("costs", ())]
    federation.captured_rows = {(client, row) for client, row in plain["captured_rows"]}
    federation.session.load_state(plain["defense"])
    federation.void_rounds = plain["void_rounds"]
    if federation.memory is not None:
        federation.memory.copy_(tensors["memory"])
    _restore_adam(federation.server.optimizer, tensors)
    for accountant, state in zip(federation.accountants, plain["accountants"], strict=True):
        if accountant is not None:
            accountant.load_state(state)
    for client, state in zip(federation.clients, plain["clients"], strict=True):
        prefix = f"client.{client.index}.replay."
        replay = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        client.replay.restore(replay, state["added"])
        client.exploration_rng.bit_generator.state = state["exploration_rng"]
        client.minibatch_rng.bit_generator.state = state["minibatch_rng"]
        client.resume(state["episodes"], state["episode_steps"])
        client.noise = None if state["noise"] is None else np.asarray(state["noise"])


def _client_state(client: Client) -> dict[str, Any]:
    return {
        "episodes": client.episodes,
        "episode_steps": client.episode_steps,
        "added": client.replay.added,
        "noise": None if client.noise is None else client.noise.tolist(),
        "exploration_rng": client.exploration_rng.bit_generator.state,
        "minibatch_rng": client.minibatch_rng.bit_generator.state,
    }


def _restore_adam(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state = optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, index, moment = name.split(".")
            state["state"].setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict(state)
