"""The documentation is held to what it says: links, formulas, code blocks, numbers and tables."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt

from tests.test_layers import LAYERS, SOURCE
from wkv.config import PRESETS
from wkv.ops import wkv
from wkv.ops.reference import wkv_reference
from wkv.state import State

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    p
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "examples/**/*.md", "src/**/*.md")
    for p in ROOT.glob(pattern)
)
BUNDLED = SOURCE / "models" / "bundled"
MATHEMATICS = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))


def parse(path):
    return MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))


def anchors(path):
    """Of every heading, as GitHub makes them."""
    tokens, found = parse(path), []
    for opened, inline in itertools.pairwise(tokens):
        if opened.type == "heading_open":
            text = "".join(c.content for c in inline.children if c.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return found


# --- links ----------------------------------------------------------------------------------------


@each_document
def test_every_internal_link_leads_somewhere(path):
    links = [
        child.attrs.get("href") or child.attrs.get("src")
        for token in parse(path)
        for child in token.children or ()
        if child.type in ("link_open", "image")
    ]
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), f"{link}: outside the repository"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading in {target.name}"


def test_the_reading_order_names_every_document():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"({name})" in index, f"docs/README.md does not name {name}"


# --- code -----------------------------------------------------------------------------------------


def python_blocks(path):
    """(line number, code) of each block marked python, but those after a "not run" comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for token in parse(path):
        if token.type == "fence" and token.info.split()[:1] == ["python"]:
            before = lines[: token.map[0]]
            while before and not before[-1].strip():
                before.pop()
            if not (before and before[-1].strip().startswith("<!-- not run")):
                yield token.map[0] + 2, token.content


@pytest.mark.parametrize(
    "path",
    [p for p in DOCUMENTS if any(python_blocks(p))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_the_python_blocks_of_a_document_run_in_order(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a block may write files
    names = {"__name__": "__main__"}
    for line, code in python_blocks(path):
        if re.search(r"\bload\(\)|pipeline\(", code) and not any(BUNDLED.glob("*.safetensors")):
            pytest.skip(f"line {line} needs the bundled model, which is not there")
        # Blank lines in front make a traceback show the document's own line.
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), names)


def test_blocks_are_found_with_their_lines_and_marked_ones_are_left_out(tmp_path):
    path = tmp_path / "a.md"
    path.write_text(
        "# A\n\n```python\nx = 1\n```\n\n<!-- not run: it would fail -->\n\n```python\n1 / 0\n```\n"
        "\n```sh\nrm\n```\n\n- nested\n\n  ```python\n  assert x == 1\n  ```\n"
    )
    assert list(python_blocks(path)) == [(4, "x = 1\n"), (20, "assert x == 1\n")]


# --- formulas -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [p for p in DOCUMENTS if "```math" in p.read_text(encoding="utf-8")],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_markdown_leaves_every_formula_as_it_was_written(path):
    """Outside ```math blocks Markdown comes first: it may eat backslashes and underscores."""
    for token in parse(path):
        if token.type != "inline":
            continue
        plain = re.sub(r"`[^`]*`", "", token.content)
        rendered = "".join(
            "\n" if c.type in ("softbreak", "hardbreak") else c.content for c in token.children
        )
        for formula in re.findall(r"\$[^$]+\$", plain):
            assert formula in rendered, f"line {token.map[0] + 1}: {formula} is shown otherwise"
        assert plain.count("$") % 2 == 0, f"line {token.map[0] + 1}: a $ without its pair"


def sequence(length=23, seed=0):
    g = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, 1, length, 3, generator=g, dtype=torch.float64) * 2
    w, u = -torch.exp(torch.randn(3, generator=g, dtype=torch.float64)), torch.randn(3, generator=g)
    a, b, p = torch.randn(3, 1, 3, generator=g, dtype=torch.float64)
    return k, v, w, u.double(), a, b.abs() + 0.5, p


def test_the_recurrence_is_the_weighted_average_of_equation_1():
    k, v, w, u, *_ = (x.numpy() for x in sequence())
    y, _ = wkv_reference(k, v, w, u)
    for t in range(k.shape[1]):
        i = np.arange(t)[:, None]
        weight = np.exp(np.concatenate([(t - 1 - i) * w + k[0, :t], u + k[0, t : t + 1]]))
        want = (weight * v[0, : t + 1]).sum(0) / weight.sum(0)
        np.testing.assert_allclose(y[0, t], want, rtol=1e-12)


def test_outputs_stay_between_the_values_and_the_denominator_between_1_and_the_length():
    k, v, w, u, *_ = (x.numpy() for x in sequence(200))
    y, (_, den, _) = wkv_reference(k, v, w, u)
    low, high = np.minimum.accumulate(v, 1), np.maximum.accumulate(v, 1)
    assert ((low - 1e-12 <= y) & (y <= high + 1e-12)).all()
    assert ((den >= 1) & (den <= 200)).all()


def compose(x, y, w):
    """Equation 6."""
    (l1, n1, d1, p1), (l2, n2, d2, p2) = x, y
    q = np.maximum(p1 + l2 * w, p2)
    old, new = np.exp(p1 + l2 * w - q), np.exp(p2 - q)
    return l1 + l2, old * n1 + new * n2, old * d1 + new * d2, q


@pytest.mark.parametrize("size", [1.0, 100.0, 1e4])
def test_composition_of_spans_is_associative_with_the_empty_span_neutral(size):
    rng = np.random.default_rng(0)
    for _ in range(200):
        w = -np.exp(rng.uniform(-5, 3))
        x, y, z = (
            (rng.integers(0, 9), rng.normal(), rng.normal(3), rng.normal(0, size)) for _ in range(3)
        )
        left = compose(compose(x, y, w), z, w)
        right = compose(x, compose(y, z, w), w)
        # Of an exponent near 1e4, float64 has twelve digits left.
        np.testing.assert_allclose(left, right, rtol=1e-12 * max(size, 10), atol=1e-12 * size)
        empty = (0, 0.0, 0.0, -1e38)
        for one_sided in (compose(empty, x, w), compose(x, empty, w)):
            np.testing.assert_array_equal(one_sided, x)
    assert np.array_equal(compose(empty, empty, w), empty)


def test_the_lowest_maximum_does_what_section_5_says():
    lowest = np.float32(-1e38)
    assert np.isfinite(lowest)
    assert lowest - lowest == 0
    assert np.exp(lowest - np.float32(-1e4)) == 0
    assert 0.9e31 < np.spacing(np.abs(lowest)) < 1.1e31
    assert lowest + np.float32(-1e6) == lowest
    assert np.float32(np.exp(-120.0)) == 0
    with np.errstate(over="ignore"):
        assert np.isinf(np.exp(np.float32(88.73)))
        assert np.isfinite(np.exp(np.float32(88.72)))
        assert np.isinf(np.float16(lowest))


def test_a_small_step_added_often_is_off_by_a_thousandth_and_a_multiple_is_not():
    w = -np.exp(np.float32(-5))
    errors = {"steps": 0.0, "multiple": 0.0}
    for start in np.linspace(0.1, 8, 40, dtype=np.float32):
        p = start
        for n in range(1, 4097):
            p = p + w
            true = float(start) + n * float(w)
            errors["steps"] = max(errors["steps"], abs(p - true))
            errors["multiple"] = max(errors["multiple"], abs(start + np.float32(n) * w - true))
    assert 0.5e-3 < errors["steps"] < 2e-3
    assert errors["multiple"] < 5e-6


def test_the_backward_recurrence_gives_the_gradients_of_every_input_and_of_the_final_state():
    inputs = [x.requires_grad_() for x in sequence()]
    k, v, w, u, a, b, p = inputs
    y, final = wkv(k, v, w, u, (a, b, p), implementation="scan")
    g = torch.Generator().manual_seed(3)
    gy = torch.randn(y.shape, generator=g, dtype=torch.float64)
    ends = [torch.randn(x.shape, generator=g, dtype=torch.float64) for x in final]
    want = torch.autograd.grad([y, *final], inputs, [gy, *ends])

    k, v, w, u, a, b, p, gy = (x.detach().numpy() for x in (*inputs, gy))
    k, v, gy = k[0], v[0], gy[0]
    befores = [(a[0], b[0], p[0])]
    for t in range(len(k)):  # equation 3
        a, b, p = befores[-1]
        q = np.maximum(p + w, k[t])
        old, new = np.exp(p + w - q), np.exp(k[t] - q)
        befores.append((old * a + new * v[t], old * b + new, q))
    last = befores.pop()

    alpha, beta, top = (x.numpy()[0] for x in ends)
    pi = top - (alpha * last[0] + beta * last[1])
    gk, gv, gw, gu = np.zeros_like(k), np.zeros_like(v), np.zeros(3), np.zeros(3)
    for t in reversed(range(len(k))):  # equations 7 and 8, scaled
        a, b, p = befores[t]
        q = np.maximum(p, u + k[t])
        old, now = np.exp(p - q), np.exp(u + k[t] - q)
        c = old * b + now
        out = (old * a + now * v[t]) / c
        q = np.maximum(p + w, k[t])
        kept, added = np.exp(p + w - q), np.exp(k[t] - q)
        bonus = now / c * gy[t] * (v[t] - out)
        wins = k[t] > p + w  # this key is the maximum: what p_T gets goes to it
        gk[t] = bonus + added * (v[t] * alpha + beta) + np.where(wins, pi, 0)
        gv[t] = now / c * gy[t] + added * alpha
        gu += bonus
        pi = np.where(wins, 0, pi)
        gw += kept * (a * alpha + b * beta) + pi
        alpha = kept * alpha + old * gy[t] / c
        beta = kept * beta - old * gy[t] * out / c
    a, b, p = befores[0]
    got = (gk[None], gv[None], gw, gu, alpha, beta, alpha * a + beta * b + pi)
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy().reshape(mine.shape), rtol=1e-9, atol=1e-11)


def test_a_shift_of_the_maximum_with_the_state_rescaled_changes_no_output():
    k, v, w, u, a, b, p = (x.numpy() for x in sequence())
    y, _ = wkv_reference(k, v, w, u, (a, b, p))
    shifted, _ = wkv_reference(k, v, w, u, (a * np.exp(-0.7), b * np.exp(-0.7), p + 0.7))
    np.testing.assert_allclose(shifted, y, rtol=1e-12)


def test_halving_the_stream_and_all_that_is_added_only_scales_it():
    rng = np.random.default_rng(0)
    matrices = rng.normal(0, 1, (7, 16, 16))

    def norm(h):
        return (h - h.mean()) / h.std()

    h = start = rng.normal(0, 1, 16)
    for m in matrices:
        h = h + m @ norm(h)
    halved = start
    for layer, m in enumerate(matrices):
        halved = halved + 2.0 ** -(layer // 2) * (m @ norm(halved))
        if (layer + 1) % 2 == 0:
            halved = halved / 2
    np.testing.assert_allclose(halved, h / 2**3, rtol=1e-12)


# --- numbers --------------------------------------------------------------------------------------


def half_life(time_decay):
    return np.log(2) / np.exp(time_decay)


CLAIMS = {
    "that is 102.9 tokens": round(half_life(-5), 1) == 102.9,
    "the factor is $e^{-20.1}$ a token": round(np.exp(3), 1) == 20.1,
    "less than\n0.75 tokens": round(half_life(-5 + 8 * 0.5**0.7), 2) == 0.75,
    "keep half for more than 13.9": round(half_life(-5 + 8 * 0.5**2.0), 1) == 13.9,
    "4608 tokens at $D = 768$": 2 * 768 * 4608 == 12 * 768**2,
    "a float16 cache is 36 MiB": 2 * 12 * 768 * 1024 * 2 == 36 * 2**20,
    "the float32 state 180 KiB": 5 * 12 * 768 * 4 == 180 * 2**10,
    "cache of two and a half\ntokens": 5 / 2 == 2.5,
    "$iw$ reaches $-2 \\cdot 10^4$ after 1000 tokens": round(1000 * np.exp(3), -4) == 2e4,
    "standard deviation $5.8 \\cdot 10^{-5}$": round(1e-4 / np.sqrt(3), 6) == 5.8e-5,
    "which is $3.2 \\cdot 10^{-3}$": round(np.sqrt(1e-5), 4) == 3.2e-3,
    "lifts it only to 0.018": round(1e-4 / np.sqrt(3 * (1e-8 / 3 + 1e-5)), 3) == 0.018,
    "by ten standard deviations": round(6e-4 / (1e-4 / np.sqrt(3))) == 10,
    "15 % at $z = \\tfrac12$": round(100 * 4 / 13 * 0.5) == 15,
    "28 % at $z = 0.9$": round(100 * 4 / 13 * 0.9) == 28,
    "a key of 256": 256.0**2 > 65504 == int(np.finfo(np.float16).max) > 255.0**2,
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_number_in_the_mathematics_is_right(claim):
    assert claim in MATHEMATICS
    assert CLAIMS[claim]


def table_rows(text, first_cell):
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and re.fullmatch(first_cell, cells[0]):
            yield cells


def test_the_table_of_state_sizes_is_what_a_state_takes():
    rows = list(table_rows(MATHEMATICS, r"\d+M|1B5|\d+B"))
    assert [row[0].lower() for row in rows] == list(PRESETS)
    for size, layers, d, count, human in rows:
        config = PRESETS[size.lower()]
        assert (int(layers), int(d)) == (config.num_hidden_layers, config.hidden_size)
        total = State.zeros(config).nbytes
        assert int(count.replace(",", "")) == total
        number, unit = human.split()
        assert (
            f"{total / {'KiB': 2**10, 'MiB': 2**20}[unit]:.{2 if unit == 'MiB' else 0}f}" == number
        )


def test_the_cost_of_a_token_is_the_number_of_weights_in_its_matrices():
    for config in PRESETS.values():
        v, d, n = config.vocab_size, config.hidden_size, config.num_hidden_layers
        # Parameters less the embedding and the vectors are what one token is multiplied with.
        vectors = d * (11 * n + 4)
        assert config.parameters - v * d - vectors == 13 * d * d * n + v * d


def test_logits_start_with_a_standard_deviation_of_a_half():
    from wkv.config import ModelConfig
    from wkv.model.rwkv4 import Rwkv4

    torch.manual_seed(0)
    model = Rwkv4(ModelConfig(vocab_size=1000, hidden_size=64, num_hidden_layers=2))
    with torch.no_grad():
        logits, _ = model(torch.arange(200)[None], implementation="scan")
    assert 0.45 < logits.std() < 0.52
    loss = torch.logsumexp(logits, -1).mean()  # the loss of a target with logit 0
    assert abs(loss - np.log(1000) - 1 / 8) < 0.02


# --- the rest -------------------------------------------------------------------------------------


def test_the_architecture_lists_the_layers_in_the_order_of_imports():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = [row[0].strip("`") for row in table_rows(text, r"`\w+`")]
    assert listed == list(LAYERS)


def test_the_contributing_guide_fits_two_pages_and_names_real_commands():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert len(text.split()) < 1100
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make (\w+)`", text)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"no target {target}"
    for path in re.findall(r"`((?:src|native|tests|benchmarks|docs)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path
