from __future__ import annotations

import torch

from attacks.pixels.like_places import averaged

ERRORS = torch.tensor([1e-6, 1e-4], dtype=torch.float64)
TINY = 2e-5


def solved() -> tuple[torch.Tensor, torch.Tensor]:
    """Two records whose upper half is one background with a tiny activation, and with errors."""
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(2, 8, 6, 6, generator=generator, dtype=torch.float64)
    true[:, :, :3] = true[0, :, 0, 0][None, :, None, None]
    true[:, 0, :3] = TINY
    noise = torch.randn(true.shape, generator=generator, dtype=torch.float64)
    return true, true + ERRORS[:, None, None, None] * noise


def test_a_background_that_one_record_shows_well_is_known_in_the_other() -> None:
    true, values = solved()
    means, stds = averaged(values, ERRORS)
    shared, own = stds[1, 0, :3], stds[1, 0, 3:]
    assert float(shared.max()) < ERRORS[0]
    assert torch.allclose(own, ERRORS[1].expand_as(own))
    assert float((values[1, 0, :3] - TINY).abs().max()) > TINY
    off = (means - true).abs()
    assert float(off[:, :, :3].max()) < 5 * float(shared.max())


def test_places_that_differ_keep_their_values() -> None:
    _, values = solved()
    means, _ = averaged(values, ERRORS)
    torch.testing.assert_close(means[:, :, 3:], values[:, :, 3:], rtol=0, atol=1e-15)
