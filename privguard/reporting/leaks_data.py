"""The page's data of what leaked: pictures and coordinates, record by record."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from privguard.records import ReleaseKind
from privguard.reporting.frames import is_stack, newest_frame, psnr
from privguard.reporting.leaks import Leak, LeakedRecord
from privguard.reporting.tables import rounded

Json = dict[str, Any]
Picture = Callable[[Any], bytes | None]
"""The picture of a state that is a vector, if there is one."""


def leaks_data(
    shown: Mapping[ReleaseKind, Sequence[Leak]], places: Mapping[int, int], picture: Picture
) -> Json:
    """``leaks`` by kind of release, and the ``pictures`` that they name by place.

    A picture that several attacks share, as they do the true ones, is there once.

    Args:
        shown: what there is to show.
        places: of the frontier's rows, by identity.
        picture: draws a state that is a vector.
    """
    pictures: dict[str, int] = {}

    def place(state: Any) -> int | None:
        drawn = newest_frame(state) if is_stack(state) else picture(state)
        if drawn is None:
            return None
        uri = f"data:image/webp;base64,{base64.b64encode(drawn).decode()}"
        return pictures.setdefault(uri, len(pictures))

    def clearness(one: LeakedRecord, found: Any) -> float | None:
        """In dB; of vectors there is none."""
        return rounded("", psnr(one.true_state, found)) if is_stack(one.true_state) else None

    def record(one: LeakedRecord, batch_size: int | None) -> Json:
        return {
            "target": one.target,
            "round": one.round,
            "rank": one.rank,
            "of": one.records or (1 if batch_size == 1 else None),
            "points": one.points,
            "pictures": [place(one.true_state), place(one.state)],
            "psnr": clearness(one, one.state),
            "mean_psnr": clearness(one, one.mean_state),
        }

    found = {
        release: [
            {
                "row": places[id(leak.row)],
                "strongest": leak.strongest,
                "seed": leak.seed,
                "records": [record(one, leak.row.batch_size) for one in leak.records],
            }
            for leak in own
        ]
        for release, own in shown.items()
        if own
    }
    return {"leaks": found, "pictures": list(pictures)}
