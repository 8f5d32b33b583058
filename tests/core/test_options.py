"""Options that a user gave wrongly are errors in the user's own words."""

from __future__ import annotations

from typing import Self

import pytest
from pydantic import Field, model_validator

from hayless.core.errors import RequestError
from hayless.core.options import Count, Options, checked


class _Box(Options):
    size: Count = Field(1, ge=1)
    share: float = Field(0.5, gt=0)

    @model_validator(mode="after")
    def _small_share_of_large(self) -> Self:
        if self.size * self.share > 100:
            raise ValueError("size times share must not pass 100.")
        return self


def test_right_options_come_through():
    assert checked(_Box, {"size": "0.1k", "share": 0.2}, {}) == _Box(size=100, share=0.2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": 0}, "^--boxes = 0 is not possible; allowed: greater than or equal to 1.$"),
        ({"size": "many"}, "^--boxes: count = 'many' .*500k or 2M.$"),
        ({"share": -1.0}, "^share = -1.0 is not possible; allowed: greater than 0.$"),
        ({"size": 0, "share": 0.0}, "(?s)^--boxes = 0.*\nshare = 0.0"),
        ({"size": 1000}, "^size times share must not pass 100.$"),
    ],
)
def test_wrong_options_are_named_as_the_user_names_them(values, words):
    with pytest.raises(RequestError, match=words):
        checked(_Box, values, {"size": "--boxes"})
