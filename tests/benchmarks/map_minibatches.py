"""Whether ``map`` reads minibatches: what it finds in a sweep's, beside the guess it begins from.

    python tests/benchmarks/map_minibatches.py DIRECTORY [--defense none] [--defense topk=0.001]

``DIRECTORY`` holds a sweep with its captures, such as ``reports/ant`` after ``privguard sweep --env
ant``. Each captured minibatch of seed 0 is answered with and without the search: its accuracy, the
share of its records picked out of decoys, and its squared error, and the accuracy of the prior's
mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from attacks.map_estimation import MAP
from attacks.scores import score
from privguard.audit.captures import CellCaptures
from privguard.auditing import Audit
from privguard.knowledge import Knowledge
from privguard.store import Store

UNKNOWNS = 10_000
"""More than ``map`` accepts by itself."""


def main(
    directory: Annotated[Path, typer.Argument(help="Of a sweep.")],
    defense: Annotated[list[str] | None, typer.Option(help="As in the sweep; repeatable.")] = None,
) -> None:
    """Prints one line a minibatch."""
    torch.set_num_threads(1)
    store = Store.open(directory)
    recorded = store.sweep()
    if recorded is None:
        raise typer.BadParameter(f"{directory}: holds no sweep")
    spec, _ = recorded
    print(
        f"{'defence':<24} {'records':>7} {'guess':>6}   searched   (error)   start alone   (error)"
    )
    for cell in spec.cells():
        if cell.seed != 0 or cell.defense_text not in (defense or ["none"]):
            continue
        captures = CellCaptures.unpack(*store.files.load_captures(cell.key))
        audit = Audit.prepare(cell, captures, Knowledge())
        for index, capture in enumerate(captures.captures):
            for release in capture.releases["deployed"]:
                seen = audit.observe(capture, release, "deployed")
                line = f"{cell.defense_text:<24} {seen.batch_size:>7}"
                for attack in (MAP(unknowns=UNKNOWNS), MAP(unknowns=UNKNOWNS, iterations=0)):
                    answer = attack.reconstruct(seen, prior=audit.prior, seed=index)
                    found = score(answer, release.truth, audit.prior, audit.reference)
                    if attack.iterations:
                        line += f" {found['ra_prior']:>6.3f}"
                    line += f" {found['ra']:>10.3f} {found['nmse']:>11.2f}"
                print(line, flush=True)


if __name__ == "__main__":
    typer.run(main)
