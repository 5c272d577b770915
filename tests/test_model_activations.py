"""Activations are those of the names that transformers gives them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers.activations import ACT2FN

from raybert.checkpoint.config import ACTIVATIONS as NAMES
from raybert.errors import SettingsError
from raybert.model.activations import ACTIVATIONS, activation


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_each_equals_transformers(name: str) -> None:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 4
    # The one name that transformers lacks.
    expected = F.elu(x) if name == "elu" else ACT2FN[name](x)
    found = activation(name)(x.clone())
    assert float((found - expected).abs().max()) <= 2e-6
    assert found.dtype == x.dtype


def test_configs_and_functions_have_the_same_names() -> None:
    assert set(ACTIVATIONS) == NAMES


def test_an_unknown_name_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(SettingsError, match="activation 'gleu': unknown; use one of elu, gelu"):
        activation("gleu")
