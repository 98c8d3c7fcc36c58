"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

EnvOption = Annotated[str, typer.Option("--env", help="Environment, see `privguard list`.")]
ObsOption = Annotated[
    str, typer.Option("--obs", help="Observation of the environment, e.g. `contact` for ant.")
]
DefenseOption = Annotated[
    list[str] | None,
    typer.Option(
        "--defense",
        help="NAME[=LEVEL[,LEVEL...]], joined by `+`; repeat for several. Without a level: the "
        "default grid. [default: every defence]",
    ),
]
LocalStepsOption = Annotated[
    int,
    typer.Option(
        help="Gradient steps of a client in a round: 1 is FedSGD, more is FedAvg, where the sum of "
        "local gradients is shared and dp-sgd is left out."
    ),
]
AttackOption = Annotated[
    list[str] | None,
    typer.Option("--attack", help="Attack; repeat for several. [default: every attack]"),
]
KnowledgeOption = Annotated[
    str,
    typer.Option(
        help="What the adversary knew beforehand: none, samples of the training data, or the "
        "simulator as well."
    ),
]
PriorFractionOption = Annotated[
    float | None,
    typer.Option(
        help="Share of the training data that the adversary holds, at most 0.03. [default: 0.003]"
    ),
]
BudgetOption = Annotated[str, typer.Option(help="smoke, quick, standard or full.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
MaxLeakageOption = Annotated[
    float, typer.Option(help="Largest acceptable worst-case leakage, 0 to 1.")
]
MaxRewardLossOption = Annotated[
    float, typer.Option(help="Largest acceptable share of the undefended reward lost, 0 to 1.")
]
