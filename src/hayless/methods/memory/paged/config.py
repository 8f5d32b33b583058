"""What a user can set about paged AdamW."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hayless.methods.optimizers.adamw import AdamWConfig


class PagedConfig(AdamWConfig):
    """AdamW, bit for bit; only where its moments lie is another matter."""

    method: Literal["paged"] = "paged"  # type: ignore[assignment]
    device_share: float = Field(
        0.0, ge=0, le=1, description="Share of each parameter's moments that stays on the device; the rest is paged."
    )
