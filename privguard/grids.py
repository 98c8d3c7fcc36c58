"""From ``--defense NAME[=LEVEL[,LEVEL...]]`` to the levels that a sweep visits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import defenses
from defenses.registry import DefenseInfo, get_defense_info
from privguard.spec import DefenseGrid, defense_text

_NONE = DefenseGrid(template="none", levels=())


def default_grids(
    clients: int, local_steps: int = 1, own: Mapping[str, str] | None = None
) -> list[DefenseGrid]:
    """Every defence of a default sweep on its grid, the undefended control first.

    With several local steps those that act on single samples are left out. ``own`` are the
    environment's grids, by the defence's bare name.
    """
    names = [
        name
        for name, info in defenses.available_defenses().items()
        if info.in_default_sweep and (local_steps == 1 or info.stage != "per-sample")
    ]
    return chosen_grids(names, clients, own)


def chosen_grids(
    texts: Sequence[str], clients: int, own: Mapping[str, str] | None = None
) -> list[DefenseGrid]:
    """The grids that the user named, the undefended control first.

    A bare name stands for the environment's ``own`` grid of it, if there is one.

    Raises:
        defenses.DefenseError: one line that says which defence is wrong and what is allowed.
    """
    own = own or {}
    named = [own.get(text.strip(), text) for text in texts if text.strip() != "none"]
    return [_NONE, *(parse_grid(text, clients) for text in named)]


def parse_grid(text: str, clients: int) -> DefenseGrid:
    """The grid written in ``text``; a stage without a level is swept over its default grid.

    Of a composition one stage is swept: the one with several levels or without one, otherwise the
    last that has a level. ``secagg`` without a level inside a composition means all clients.

    Raises:
        defenses.DefenseError: an unknown name, a level out of range, two swept stages, no level.
    """
    stages = [part.strip() for part in re.split(r"\+(?=\s*[A-Za-z_])", text)]
    parsed = [_split_stage(stage) for stage in stages]
    infos = [get_defense_info(name) for name, _, _ in parsed]
    several = [
        i
        for i, (info, (_, levels, _)) in enumerate(zip(infos, parsed, strict=True))
        if (levels is not None and "," in levels)
        or (levels is None and info.level and not (info.optional_level and len(stages) > 1))
    ]
    if len(several) > 1:
        raise defenses.DefenseError(
            f"--defense {text}: one stage can be swept, not {len(several)}; give the others a level"
        )
    with_level = [i for i, (_, levels, _) in enumerate(parsed) if levels is not None]
    swept = several[0] if several else with_level[-1] if with_level else None
    if swept is None:
        defenses.parse(text)
        return DefenseGrid(template=text.strip(), levels=())
    name, levels_text, options = parsed[swept]
    info = infos[swept]
    if levels_text is None:
        levels = [level for level in info.grid if name != "secagg" or level <= clients]
    else:
        levels = [info.check_level(level.strip()) for level in levels_text.split(",")]
    stages[swept] = f"{name}={{level}}{options}"
    grid = DefenseGrid(template="+".join(stages), levels=tuple(dict.fromkeys(levels)))
    for level in grid.levels:
        defenses.parse(defense_text(grid.template, level))
    return grid


def check_clients(text: str, clients: int) -> None:
    """Builds the defence for so many clients, on the smallest of networks.

    Raises:
        defenses.DefenseError: it cannot be built, e.g. for groups that do not divide the clients.
    """
    import torch

    defenses.parse(text).bind(
        torch.nn.Linear(2, 1), clients=clients, batch_size=1, generator=torch.Generator()
    ).close()


def swept_stage(template: str) -> DefenseInfo | None:
    """The registered defence whose level a cell sets; None where it sets none."""
    for stage in template.split("+"):
        if "={level}" in stage:
            return get_defense_info(stage.split("=")[0])
    return None


def _split_stage(stage: str) -> tuple[str, str | None, str]:
    """``name=levels@options`` as (name, levels or None, '@options' or '')."""
    head, at, options = stage.partition("@")
    name, equals, levels = head.partition("=")
    return name.strip(), levels if equals else None, at + options
