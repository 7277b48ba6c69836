"""What the model remembers, as a value. ``python examples/hf_state.py [MODEL]``."""

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import wkv.api

model_id = sys.argv[1] if len(sys.argv) > 1 else str(wkv.api.BUNDLED)
model = AutoModelForCausalLM.from_pretrained(model_id)
tokenizer = AutoTokenizer.from_pretrained(model_id)

# A text in two pieces gives the logits of the whole.
ids = tokenizer("In the beginning was the word", return_tensors="pt")["input_ids"]
with torch.no_grad():
    whole = model(ids)
    first = model(ids[:, :3])
    second = model(ids[:, 3:], state=first.state)
print(torch.allclose(torch.cat([first.logits, second.logits], 1), whole.logits, atol=1e-3))

# Generating returns a state that has read all but the last token: go on from there, today or
# tomorrow, here or elsewhere.
output = model.generate(ids, max_new_tokens=20, do_sample=False, return_dict_in_generate=True)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "conversation.state"
    output.state.save(path)
    print(f"{path.stat().st_size:,} bytes, however long the text")
    state = wkv.State.load(path)
more = model.generate(output.sequences[:, -1:], state=state, max_new_tokens=20, do_sample=False)
print(tokenizer.decode([*output.sequences[0], *more[0, 1:]], skip_special_tokens=True))

# One state, three ways on.
ways = model.generate(
    output.sequences[:, -1:],
    state=state,
    max_new_tokens=20,
    do_sample=True,
    num_return_sequences=3,
    seed=0,
)
for way in ways:
    print("...", tokenizer.decode(way[1:], skip_special_tokens=True))
