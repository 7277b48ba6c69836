"""Logits of this package, transformers' RWKV and the rwkv package against the float64 recurrence.

    python benchmarks/parity.py --layers 12 --hidden 256

All run the same random weights, every one of them perturbed, in float32 on the CPU. The figure is
the largest absolute error of a logit, whose own size is printed in the title.

- prefill: one sequence at once;
- decode: the same sequence token by token, each from the state or cache of the one before;
- padded batch: four sequences of different lengths at once, padded on the left, with a mask;
- batched decode: four sequences of one length, token by token.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import machine, report

sys.path.insert(0, str(Path(__file__).parents[1]))  # the oracles live with the tests

from tests.oracles import rwkv_float64
from tests.oracles.models import original_name, random_weights, transformers_model
from tests.oracles.rwkv_package import rwkv_package_model

from wkv.config import ModelConfig

Logits = list[np.ndarray]  # of each sequence [T, V]


def build(config: ModelConfig, weights: dict[str, np.ndarray], dtype: torch.dtype):
    from wkv.hf import RwkvConfig, RwkvForCausalLM

    model = RwkvForCausalLM(RwkvConfig.of(config))
    model.load_state_dict(
        {n: torch.from_numpy(weights[original_name(n)]) for n in model.state_dict()}
    )
    return model.to(dtype).eval()


def prefill(model, sequence: list[int]) -> Logits:
    return [model(torch.tensor([sequence])).logits[0].double().numpy()]


def decode(model, sequence: list[int]) -> Logits:
    state, rows = None, []
    for token in sequence:
        output = model(torch.tensor([[token]]), state=state, use_cache=True)
        state = output.state
        rows.append(output.logits[0, 0].double().numpy())
    return [np.stack(rows)]


def padded(model, sequences: list[list[int]]) -> Logits:
    width = max(map(len, sequences))
    ids = torch.tensor([[0] * (width - len(s)) + s for s in sequences])
    mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences])
    logits = model(ids, attention_mask=mask).logits.double().numpy()
    return [row[width - len(s) :] for row, s in zip(logits, sequences)]


def together(model, sequences: list[list[int]]) -> Logits:
    ids = torch.tensor(sequences)
    state, parts = None, []
    for i in range(ids.shape[1]):
        output = model(ids[:, i : i + 1], state=state, use_cache=True)
        state = output.state
        parts.append(output.logits)
    return list(torch.cat(parts, 1).double().numpy())


def package_prefill(model, sequence: list[int]) -> Logits:
    return [np.asarray(model.forward(sequence, None, full_output=True)[0], np.float64)]


def package_decode(model, sequence: list[int]) -> Logits:
    state, rows = None, []
    for token in sequence:
        logits, state = model.forward([token], state)
        rows.append(np.asarray(logits, np.float64))
    return [np.stack(rows)]


def error(run: Callable[[], Logits], exact: Logits) -> str:
    try:
        got = run()
    except Exception as problem:
        return f"fails: {type(problem).__name__}"
    if any(g.shape != e.shape for g, e in zip(got, exact)):
        return "fails: wrong shape"
    return f"{max(np.abs(g - e).max() for g, e in zip(got, exact)):.1e}"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    config = ModelConfig(
        vocab_size=args.vocab, hidden_size=args.hidden, num_hidden_layers=args.layers
    )
    weights = random_weights(config, args.seed)
    rng = np.random.default_rng(args.seed)
    sequence = rng.integers(1, args.vocab, args.tokens).tolist()
    lengths = [args.tokens, args.tokens // 2, args.tokens // 3, 7]
    sequences = [rng.integers(1, args.vocab, n).tolist() for n in lengths]
    exact = [rwkv_float64.forward(weights, sequence)[0]]
    exact_padded = [rwkv_float64.forward(weights, s)[0] for s in sequences]
    square = rng.integers(1, args.vocab, (4, args.tokens)).tolist()
    exact_square = [rwkv_float64.forward(weights, s)[0] for s in square]

    def row(name: str, model) -> list[str]:
        return [
            name,
            error(lambda: prefill(model, sequence), exact),
            error(lambda: decode(model, sequence), exact),
            error(lambda: padded(model, sequences), exact_padded),
            error(lambda: together(model, square), exact_square),
        ]

    rows = [
        row(f"wkv, {str(dtype).removeprefix('torch.')}", build(config, weights, dtype))
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ]
    rows.append(row("transformers, float32", transformers_model(config, weights)))
    with tempfile.TemporaryDirectory() as folder:
        package = rwkv_package_model(config, weights, Path(folder))
    rows.append(
        [
            "rwkv package, float32",
            error(lambda: package_prefill(package, sequence), exact),
            error(lambda: package_decode(package, sequence), exact),
            "no batches",
            "no batches",
        ]
    )
    title = (
        f"Largest error of a logit against float64: {args.layers} layers of {args.hidden}, "
        f"{args.tokens} tokens, logits up to {np.abs(exact[0]).max():.0f}, {machine()}"
    )
    report(title, ["", "prefill", "decode", "padded batch", "batched decode"], rows, args.json)


if __name__ == "__main__":
    main()
