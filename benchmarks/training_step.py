"""One training step of the 169M shape: this package, transformers' RWKV, and GPT-NeoX beside it.

    python benchmarks/training_step.py --context 512 --dtype float32

Forward, backward, clipping and the AdamW update on random tokens; all models in turn, medians. Each
has its own loss: ours has L2Wrap in it, the others' is what transformers computes from ``labels``.
Freed memory is kept (``wkv.train.memory``) for all of them, as ``wkv train`` does. The share of the
arithmetic peak is 6 · parameters in matrices · tokens ÷ time, against a matrix product timed in the
same rounds.
"""

from __future__ import annotations

import argparse
import gc

import torch
from harness import interleave, machine, matmul_run, median, ratio, report

from wkv.train.memory import keep_freed_memory


def build_ours(shape: dict):
    from wkv.config import ModelConfig
    from wkv.hf import RwkvConfig, RwkvForCausalLM
    from wkv.train.loss import step_loss

    model = RwkvForCausalLM(RwkvConfig.of(ModelConfig(**shape)))

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        return step_loss(logits, tokens[:, 1:], float(tokens[:, 1:].numel()), 1e-4)

    return model, loss


def build_transformers(shape: dict):
    from transformers.models.rwkv.configuration_rwkv import RwkvConfig
    from transformers.models.rwkv.modeling_rwkv import RwkvForCausalLM

    model = RwkvForCausalLM(RwkvConfig(**shape, use_cache=False))
    return model, lambda tokens: model(tokens[:, 1:], labels=tokens[:, 1:], use_cache=False).loss


def build_neox(shape: dict):
    from peers import gpt_neox

    from wkv.config import ModelConfig

    # The published models' form: heads of 64, a feed-forward layer of 4 times the width.
    width = shape["hidden_size"]
    model = gpt_neox(ModelConfig(**shape), 1 << 13, head=64, intermediate=4 * width)
    return model, lambda tokens: model(tokens[:, 1:], labels=tokens[:, 1:], use_cache=False).loss


def step_of(build, shape: dict, batch: int, context: int, bf16: bool):
    torch.manual_seed(0)
    model, loss_of = build(shape)
    model.train()
    with torch.no_grad():  # decays that differ, as in a trained model
        for name, p in model.named_parameters():
            if name.endswith("time_decay"):
                p.copy_(torch.linspace(-5, 3, p.numel()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(0, shape["vocab_size"], (batch, context + 1))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return model, step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--vocab", type=int, default=50277)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--without", nargs="*", default=[], help="models to leave out")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    keep_freed_memory()
    shape = {
        "vocab_size": args.vocab,
        "hidden_size": args.hidden,
        "num_hidden_layers": args.layers,
    }
    bf16 = args.dtype == "bfloat16"
    builders = {"wkv": build_ours, "GPT-NeoX": build_neox, "transformers RWKV": build_transformers}
    models, runs = {}, {}
    for name, build in builders.items():
        if name not in args.without:
            models[name], runs[name] = step_of(build, shape, args.batch, args.context, bf16)
    product, operations = matmul_run(torch.bfloat16 if bf16 else torch.float32)
    runs["peak"] = product
    gc.collect()
    times = interleave(runs, args.rounds, args.warmup)
    peak = operations / min(times.pop("peak"))
    tokens = args.batch * args.context
    rows = []
    for name, seconds in times.items():
        emb = args.vocab * args.hidden
        work = 6.0 * (sum(p.numel() for p in models[name].parameters()) - emb) * tokens
        rows.append(
            [
                name,
                f"{median(seconds):.2f}",
                f"{tokens / median(seconds):.0f}",
                f"{ratio(seconds, times['wkv']):.2f}" if "wkv" in times else "",
                f"{100 * work / median(seconds) / peak:.0f} %",
            ]
        )
    title = (
        f"Training step, {args.layers}×{args.hidden}, {args.batch}×{args.context} tokens, "
        f"{args.dtype}, {torch.get_num_threads()} threads, {machine()}, "
        f"peak {peak / 1e9:.0f} GFLOP/s"
    )
    header = ["model", "s a step", "tokens/s", "time ÷ wkv's", "share of peak"]
    report(title, header, rows, args.json)


if __name__ == "__main__":
    main()
