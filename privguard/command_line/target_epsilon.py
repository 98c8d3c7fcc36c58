"""``--defense dp-sgd=eps:8``: the noise multiplier that spends a wanted epsilon over the run."""

from __future__ import annotations

import re
from dataclasses import dataclass

import defenses
from defenses.accounting import Accountant
from defenses.calibration import noise_multiplier_for
from defenses.client_accounting import ClientAccountant
from defenses.prv_accounting import PRVAccountant
from defenses.registry import DefenseError, get_defense_info

_PREFIX = "eps:"


@dataclass(frozen=True)
class Plan:
    """What is known of a cell's rounds before they are run."""

    rounds: int
    warmup_steps: int
    steps_per_round: int
    batch_size: int

    @property
    def rates(self) -> list[float]:
        """Each round's sampling rate: minibatch over one client's replay, which grows."""
        sizes = (
            self.warmup_steps + (index + 1) * self.steps_per_round for index in range(self.rounds)
        )
        return [min(1.0, self.batch_size / size) for size in sizes]

    @property
    def records(self) -> int:
        """One client's transitions at the end."""
        return self.warmup_steps + self.rounds * self.steps_per_round


def with_noise_multipliers(text: str, plan: Plan) -> str:
    """The defence ``text`` with every level ``eps:X`` replaced by a noise multiplier.

    Raises:
        defenses.DefenseError: X is no number above 0, is out of reach, or the defence that has it
            accounts for no epsilon.
    """
    if _PREFIX not in text:
        return text

    def calibrated(match: re.Match[str]) -> str:
        name, levels, options = match["name"], match["levels"].split(","), match["options"]
        calibrated = ",".join(_level(name, level.strip(), options, plan) for level in levels)
        return f"{name}={calibrated}{options}"

    return re.sub(
        r"(?P<name>[\w.:-]+)=(?P<levels>[^@+]*eps:[^@+]*)(?P<options>[^+]*)", calibrated, text
    )


def _level(name: str, level: str, options: str, plan: Plan) -> str:
    if not level.startswith(_PREFIX):
        return level
    info = get_defense_info(name)

    def accountant(noise_multiplier: float) -> Accountant | ClientAccountant:
        found = defenses.parse(f"{name}={noise_multiplier}{options}").accountant()
        if found is None:
            raise DefenseError(
                f"{name}={level}: {name} accounts for no epsilon; give its {info.level}"
            )
        if isinstance(found, PRVAccountant):
            # A search asks for epsilon many times; PRV's comes out below the wanted one.
            return Accountant(found.noise_multiplier, per=found.per)
        return found

    if info.level is None:
        raise DefenseError(f"{name}={level}: {name} has no level")
    try:
        epsilon = float(level.removeprefix(_PREFIX))
    except ValueError:
        raise DefenseError(
            f"{name}={level}: the wanted epsilon must be a finite number above 0, e.g. eps:8"
        ) from None
    example = accountant(1.0)
    if isinstance(example, Accountant) and example.per == "trajectory":
        raise DefenseError(
            f"{name}={level}{options}: how many trajectories there will be depends on the policy; "
            f"give its {info.level}, or leave the unit at transition"
        )
    delta = example.delta(plan.records)
    return f"{noise_multiplier_for(epsilon, delta, plan.rates, accountant):g}"
