"""What all specifications share: strict fields, values that never change."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]


class Specification(BaseModel):
    """Base of all specifications: unknown fields are an error, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
