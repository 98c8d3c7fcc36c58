"""The commands that read what runs have recorded: report, recommend, compare and watch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from privguard.command_line.shared_options import JsonOption, MaxLeakageOption, MaxRewardLossOption

reports = typer.Typer()

RunArgument = Annotated[Path, typer.Argument(help="Directory of a run.")]


@reports.command(epilog="Example: `privguard report reports/ant`")
def report(directory: RunArgument) -> None:
    """Draw the frontier of what is finished: figures, CSV, summary and page."""
    from privguard.command_line.queries import report_command

    report_command(directory)


@reports.command(
    epilog="Examples: `privguard recommend reports/ant --max-leakage 0.2` · `privguard recommend "
    "reports/ant --max-epsilon 8 --max-identified 0.05 --json`"
)
def recommend(
    directory: RunArgument,
    max_leakage: MaxLeakageOption = 0.1,
    max_reward_loss: MaxRewardLossOption = 0.05,
    max_identified: Annotated[
        float | None,
        typer.Option(
            help="Largest acceptable share of records that an attacker picks out of 1,000, 0 to 1."
        ),
    ] = None,
    max_epsilon: Annotated[
        float | None,
        typer.Option(help="Largest acceptable epsilon; asks for a formal guarantee."),
    ] = None,
    max_bytes: Annotated[
        float | None, typer.Option(help="Most bytes that a client may send up in a round.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Choose the defence and level to deploy, or say what came nearest and what to run next.

    A level keeps a limit if the unfavourable end of its interval does.
    """
    from privguard.command_line.options import make_limits
    from privguard.command_line.queries import recommend_command

    limits = make_limits(
        max_leakage=max_leakage,
        max_reward_loss=max_reward_loss,
        max_identified=max_identified,
        max_epsilon=max_epsilon,
        max_bytes=max_bytes,
    )
    recommend_command(directory, limits, as_json)


@reports.command(
    epilog="Examples: `privguard compare reports/ant reports/hopper` · `privguard compare "
    "reports/ant reports/ant-batch64 --out reports/batches`"
)
def compare(
    directories: Annotated[list[Path], typer.Argument(help="Directories of two or more runs.")],
    out: Annotated[Path, typer.Option(help="Directory of the comparison.")] = Path(
        "reports/comparison"
    ),
    max_leakage: MaxLeakageOption = 0.1,
    max_reward_loss: MaxRewardLossOption = 0.05,
) -> None:
    """Several runs (environments, agents) on one page, one figure and one table.

    Returns are normalised run by run, and aggregated by interquartile means.
    """
    from privguard.command_line.options import make_limits
    from privguard.command_line.queries import compare_command

    limits = make_limits(max_leakage=max_leakage, max_reward_loss=max_reward_loss)
    compare_command(directories, out, limits)


@reports.command(epilog="Example: `privguard watch reports/ant`")
def watch(
    directory: RunArgument,
    port: Annotated[
        int, typer.Option(help="Port on this machine; 0 takes any that is free.")
    ] = 8765,
) -> None:
    """Serve a run's page to this machine alone; it refreshes while the sweep goes on."""
    from privguard.command_line.watch import watch_command

    watch_command(directory, port)
