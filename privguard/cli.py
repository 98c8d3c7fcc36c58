"""The command line: parses, calls, prints. Commands import what they need, when they need it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from privguard import __version__
from privguard.command_line.reports import reports
from privguard.command_line.shared_options import (
    AttackOption,
    BudgetOption,
    DefenseOption,
    EnvOption,
    JsonOption,
    KnowledgeOption,
    LocalStepsOption,
    MaxLeakageOption,
    MaxRewardLossOption,
    ObsOption,
    PriorFractionOption,
)
from privguard.errors import BadInput

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Which defence, at which noise level, keeps a federated RL client's experience private "
    "while the policy still works?",
    epilog="Start with `privguard sweep --env ant --budget smoke`, then without `--budget`.",
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Global options."""
    if version:
        typer.echo(f"privguard {__version__}")
        raise typer.Exit


@app.command("list", epilog="Example: `privguard list --json`")
def list_everything(as_json: JsonOption = False) -> None:
    """Environments, defences with their levels and grids, attacks and budgets."""
    from privguard.command_line.listing import catalogue, render

    entries = catalogue()
    typer.echo(json.dumps(entries, indent=2) if as_json else render(entries))


@app.command(
    epilog="Examples: `privguard sweep --env ant` · `privguard sweep --env hopper --defense "
    "dp-sgd=0.03,0.1 --defense gaussian --attack rgia --seeds 5` · `privguard sweep --env ant "
    "--refine --max-cells 100`"
)
def sweep(
    env: EnvOption = "",
    obs: ObsOption = "default",
    defense: DefenseOption = None,
    attack: AttackOption = None,
    seeds: Annotated[
        int | None, typer.Option(help="Seeds of every cell. [default: of the budget, 3]")
    ] = None,
    clients: Annotated[int, typer.Option(help="Clients in the federation.")] = 4,
    batch_size: Annotated[
        int | None, typer.Option(help="Minibatch of a client. [default: of the recipe]")
    ] = None,
    local_steps: LocalStepsOption = 1,
    probe_batch_size: Annotated[int, typer.Option(help="Records behind a probe release.")] = 1,
    knowledge: KnowledgeOption = "samples",
    prior_fraction: PriorFractionOption = None,
    budget: BudgetOption = "quick",
    workers: Annotated[
        int | None, typer.Option(help="Cells at a time. [default: one a processor]")
    ] = None,
    executor: Annotated[str, typer.Option(help="local or ray.")] = "local",
    refine: Annotated[
        bool,
        typer.Option(
            "--refine",
            help="After the grid: bisect each defence's level around where its leakage and its "
            "reward cross what is allowed, to within a factor of 1.5, and add seeds until it is "
            "certain.",
        ),
    ] = False,
    max_leakage: MaxLeakageOption = 0.1,
    max_reward_loss: MaxRewardLossOption = 0.05,
    max_cells: Annotated[
        int | None,
        typer.Option(help="With --refine: cells beyond the grid. [default: 60]"),
    ] = None,
    max_seeds: Annotated[
        int | None,
        typer.Option(help="With --refine: seeds of one level. [default: 10]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the run. [default: reports/ENV]")
    ] = None,
    spec_file: Annotated[
        Path | None, typer.Option("--spec", help="Read the sweep from a JSON file instead.")
    ] = None,
) -> None:
    """Train under every defence, attack what is shared, and draw the frontier.

    Running the same command again resumes: what is finished is not computed twice.
    """
    from privguard.command_line.commands import sweep_command
    from privguard.command_line.options import make_limits, make_refinement, make_spec

    limits = make_limits(max_leakage=max_leakage, max_reward_loss=max_reward_loss)
    refinement = make_refinement(limits, refine, max_cells, max_seeds)
    spec = make_spec(
        spec_file=spec_file,
        env=env,
        observation=obs,
        defenses=defense or [],
        attacks=attack or [],
        seeds=seeds,
        clients=clients,
        batch_size=batch_size,
        local_steps=local_steps,
        probe_batch_size=probe_batch_size,
        budget_name=budget,
        knowledge=knowledge,
        prior_fraction=prior_fraction,
    )
    failed = sweep_command(
        spec,
        out=out or Path("reports") / spec.env,
        workers=workers,
        executor=executor,
        command=_command_line(),
        limits=limits,
        refinement=refinement,
    )
    raise typer.Exit(1 if failed else 0)


@app.command(epilog="Example: `privguard train --env hopper --defense gaussian=0.1 --budget smoke`")
def train(
    env: EnvOption,
    obs: ObsOption = "default",
    defense: Annotated[str, typer.Option(help="One defence with its level.")] = "none",
    seed: Annotated[int, typer.Option(help="Seed of the cell.")] = 0,
    local_steps: LocalStepsOption = 1,
    budget: BudgetOption = "quick",
    out: Annotated[Path, typer.Option(help="Directory of the run.")] = Path("reports/train"),
) -> None:
    """Train one cell and keep its captured releases, without attacking them."""
    from privguard.command_line.commands import train_command

    raise typer.Exit(
        train_command(env, obs, defense, seed, local_steps, budget, out, _command_line())
    )


@app.command(
    epilog="Examples: `privguard attack reports/train --attack rgia` · `privguard attack "
    "reports/ant --knowledge simulator`"
)
def attack(
    directory: Annotated[Path, typer.Argument(help="Directory of a run with captured releases.")],
    attack: AttackOption = None,
    knowledge: KnowledgeOption = "samples",
    prior_fraction: PriorFractionOption = None,
) -> None:
    """Run attacks on the captured releases of finished cells; scores join the run's records.

    Nothing is trained again, so the same releases can be attacked under several knowledges.
    """
    from privguard.command_line.commands import attack_command
    from privguard.knowledge import chosen_knowledge

    granted = chosen_knowledge(knowledge, prior_fraction)
    failed = attack_command(directory, attack or [], granted, _command_line())
    raise typer.Exit(1 if failed else 0)


@app.command(epilog="Example: `privguard evaluate --env ant --policy zero`")
def evaluate(
    env: EnvOption,
    obs: ObsOption = "default",
    policy: Annotated[str, typer.Option(help="random or zero.")] = "random",
    episodes: Annotated[int, typer.Option(help="Number of episodes.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the episodes.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Returns of the policies that every trained one must beat."""
    from privguard.command_line.queries import evaluate_command

    evaluate_command(env, obs, policy, episodes, seed, as_json)


app.add_typer(reports)


@app.command(
    epilog="Examples: `privguard predict --env ant` · `privguard predict --env ant --run "
    "reports/ant --share 0.9`"
)
def predict(
    env: EnvOption,
    obs: ObsOption = "default",
    batch_size: Annotated[int, typer.Option(help="Records behind a probe release.")] = 1,
    share: Annotated[
        float, typer.Option(help="Wanted floor, as a share of the prior's variance, 0 to 1.")
    ] = 0.5,
    clip: Annotated[float, typer.Option(help="Clipping norm of dp-sgd.")] = 1.0,
    releases: Annotated[
        int,
        typer.Option(help="Rounds in which the same record takes part, all kept by the server."),
    ] = 1,
    run: Annotated[
        Path | None,
        typer.Option(help="Use the trained undefended networks of this run's captures."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the networks and of the experience.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Limits of every attack against Gaussian noise, in seconds, without training."""
    from privguard.command_line.queries import predict_command

    predict_command(env, obs, batch_size, share, clip, releases, run, seed, as_json)


@app.command(epilog="Example: `privguard check my_package.my_defense:shuffle`")
def check(
    plugin: Annotated[
        str, typer.Argument(help="Attack or defence: a name, or MODULE:NAME of your own.")
    ],
) -> None:
    """Run the conformance suite on an attack or a defence, ours or your own."""
    from privguard.command_line.queries import check_command

    raise typer.Exit(check_command(plugin))


def _command_line() -> str:
    return shlex.join(["privguard", *sys.argv[1:]])


# Typer brings its own click or uses the installed one, by version: this is the class of either.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def _one_line(error: Exception, arguments: list[str]) -> str:
    """A usage error with the option and the value that it is about."""
    text = " ".join(error.format_message().split())  # type: ignore[attr-defined]
    for option in getattr(getattr(error, "param", None), "opts", ()):
        for place, argument in enumerate(arguments[:-1]):
            if argument == option and option in text:
                reason = text.split(": ", 1)[-1]
                return f"{option} {arguments[place + 1]}: {reason[:1].lower()}{reason[1:]}"
    return text


def main() -> None:
    """Entry point: bad input ends in one line and exit code 2, never in a traceback."""
    if not sys.argv[1:]:
        sys.argv.append("--help")
    try:
        code = app(standalone_mode=False)
    except BadInput as error:
        message, code = str(error), 2
    except _UsageError as error:
        message, code = _one_line(error, sys.argv[1:]), 2
    else:
        sys.exit(code)
    typer.echo(f"privguard: {message}", err=True)
    sys.exit(code)
