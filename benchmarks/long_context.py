"""Training on contexts of 1k to 256k tokens: peak memory and speed, chunked and whole.

    python benchmarks/long_context.py --contexts 1024 8192 65536 262144

One row of T random tokens on the bundled model's shape, forward and backward, by full and truncated
back-propagation over chunks, and unchunked while that fits into ``--whole-up-to``. Each measurement
is a process of its own: the peak is the resident memory beyond that of the loaded model.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

from harness import machine, report

# glibc keeps freed blocks for later, in pieces that do not fit: the resident memory then creeps up
# by tens of MiB though what is live does not. Large blocks go back to the system instead.
GIVE_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
SHAPE = {"vocab_size": 4096, "hidden_size": 192, "num_hidden_layers": 6}


def measure(context: int, chunk: int, gradients: str, repeats: int) -> dict[str, float]:
    """Tokens/s and peak memory in MiB of one way to train on one row."""
    import torch

    from wkv.config import ModelConfig
    from wkv.hf import RwkvConfig, RwkvForCausalLM
    from wkv.train.bptt import chunked_backward
    from wkv.train.loss import step_loss

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = RwkvForCausalLM(RwkvConfig.of(ModelConfig(**SHAPE))).to(device).train()
    with torch.no_grad():  # a fresh model's zeros would make its gradients vanish
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    ids = torch.randint(0, SHAPE["vocab_size"], (1, context + 1), device=device)

    def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return step_loss(logits, labels, context, 1e-4)

    def step(tokens: torch.Tensor, span: int) -> float:
        loss = chunked_backward(
            model, tokens[:, :-1], tokens[:, 1:], loss_of, span, gradients=gradients
        )
        value = loss.item()
        model.zero_grad(set_to_none=False)
        return value

    # Gradients are allocated and kernels chosen by a short row.
    step(ids[:, :65], 64)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated() / 2**20
    else:
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        step(ids, chunk)
        seconds.append(time.perf_counter() - begin)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"tokens_per_second": context / min(seconds), "peak_mib": peak - base}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 8192, 65536, 262144])
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--whole-up-to", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=3, metavar=("CONTEXT", "CHUNK", "GRADIENTS"))
    args = parser.parse_args()
    if args.one:
        context, chunk, gradients = args.one
        print(json.dumps(measure(int(context), int(chunk), gradients, args.repeats)))
        return
    ways = [("full", args.chunk, "full"), ("truncated", args.chunk, "truncated")]
    rows = []
    for context in args.contexts:
        whole = [("unchunked", context, "full")] if context <= args.whole_up_to else []
        for name, chunk, gradients in [*ways, *whole]:
            command = [sys.executable, __file__, "--one", str(context), str(chunk), gradients]
            command += ["--repeats", str(args.repeats)]
            out = subprocess.run(
                command, capture_output=True, text=True, check=True, env={**os.environ, **GIVE_BACK}
            ).stdout
            found = json.loads(out.splitlines()[-1])
            rows.append(
                [
                    f"{context:,}",
                    name,
                    f"{found['tokens_per_second']:,.0f}",
                    f"{found['peak_mib']:,.0f}",
                ]
            )
            print(*rows[-1], sep="\t", file=sys.stderr, flush=True)
    title = f"Long contexts, 4.5M parameters, chunks of {args.chunk}, {machine()}"
    report(title, ["context", "gradients", "tokens/s", "peak MiB"], rows, args.json)


if __name__ == "__main__":
    main()
