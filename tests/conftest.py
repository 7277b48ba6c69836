"""Fixtures that the whole suite shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before torch starts its pools: the tests' matrices are too small to be worth threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Idle threads that spin take the core from whoever shares the machine (measured: 3.5× slower).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RWKV_V7_ON", "0")
os.environ.setdefault("RWKV_JIT_ON", "0")
if not Path("/dev/nvidiactl").exists():
    # Read when Triton is first imported: its kernels then run in its interpreter, on the CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference data beside the checkout; tests that need it skip without it."""
    path = Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs ../shared/data beside the checkout")
    return path


@pytest.fixture(scope="session")
def tiny_config():
    """Three layers, with attention and feed-forward sizes that differ from the default."""
    from wkv.config import ModelConfig

    return ModelConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=3,
        attention_hidden_size=48,
        intermediate_size=80,
        rescale_every=2,
    )


@pytest.fixture(scope="session")
def square_config():
    """Three layers of the published proportions (A = D, F = 4D), which other software requires."""
    from wkv.config import ModelConfig

    return ModelConfig(vocab_size=97, hidden_size=32, num_hidden_layers=3, rescale_every=2)


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A model hub on this machine, to which the Hub libraries of this process are connected."""
    from tests.oracles import fake_hub

    with fake_hub.FakeHub().serve() as hub:
        fake_hub.connect(hub, tmp_path / "hf_home", monkeypatch)
        yield hub
