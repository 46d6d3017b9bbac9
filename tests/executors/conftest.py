"""What several tests of executors need."""

import pytest

from privfed.models.build import build_model


@pytest.fixture
def cnn_is_long(monkeypatch):
    """Updates of ``cnn`` on small images leave the graph one by one, as those of large models do."""
    monkeypatch.setattr("privfed.executors.local._LONG", 50_000)
    cnn, mlp = (build_model(name, (8, 8, 1), 10).dimension for name in ("cnn", "mlp"))
    assert cnn > 50_000 > mlp
