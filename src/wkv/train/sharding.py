"""FSDP on processors: what Accelerate's launcher is asked for and quietly leaves out there."""

from __future__ import annotations

import os

from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    TorchDynamoPlugin,
)
from transformers import TrainingArguments


def honour_fsdp(arguments: TrainingArguments) -> None:
    """Make FSDP happen on CPU processes that were launched for it.

    Accelerate 1.x reads its FSDP settings only where there is an accelerator device; on the CPU it
    would run DDP instead without a word, though PyTorch's FSDP2 works over gloo. Call between
    making the arguments and the Trainer.
    """
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    state = arguments.distributed_state
    if not asked or state is None or state.distributed_type != DistributedType.MULTI_CPU:
        return
    precision = "bf16" if arguments.bf16 else "no"
    shared = AcceleratorState(
        mixed_precision=precision,
        cpu=True,
        dynamo_plugin=TorchDynamoPlugin(),
        _from_accelerator=True,
    )
    shared.distributed_type = DistributedType.FSDP
    shared.fsdp_plugin = FullyShardedDataParallelPlugin()
