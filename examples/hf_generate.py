"""AutoModel and generate. ``python examples/hf_generate.py [MODEL]``: a folder or a Hub name."""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import wkv.api

model_id = sys.argv[1] if len(sys.argv) > 1 else str(wkv.api.BUNDLED)
model = AutoModelForCausalLM.from_pretrained(model_id)
tokenizer = AutoTokenizer.from_pretrained(model_id)
if torch.cuda.is_available():
    model = model.to(0)

prompt = "\nIt was a dark night, and a herd of dragons was seen in the valley,"
inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
output = model.generate(inputs["input_ids"], max_new_tokens=40)
print(tokenizer.decode(output[0].tolist(), skip_special_tokens=True))

# Several prompts of different lengths, each with random numbers of its own.
tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
inputs = tokenizer([prompt, "The king said"], return_tensors="pt", padding=True).to(model.device)
output = model.generate(**inputs, max_new_tokens=40, do_sample=True, top_p=0.8, seed=1)
for text in tokenizer.batch_decode(output, skip_special_tokens=True):
    print("---", text, sep="\n")
