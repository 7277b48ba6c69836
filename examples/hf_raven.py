"""A Raven model answers. ``python examples/hf_raven.py [MODEL] [QUESTION]``.

``RWKV/rwkv-raven-1b5`` and its siblings are trained on this form; the bundled model, which is the
default, has never seen an instruction and merely goes on.
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import wkv.api

model_id = sys.argv[1] if len(sys.argv) > 1 else str(wkv.api.BUNDLED)
question = sys.argv[2] if len(sys.argv) > 2 else "Tell me about ravens"

model = AutoModelForCausalLM.from_pretrained(model_id)
tokenizer = AutoTokenizer.from_pretrained(model_id)

prompt = f"### Instruction: {question}\n### Response:"
inputs = tokenizer(prompt, return_tensors="pt")
output = model.generate(inputs["input_ids"], max_new_tokens=60)
print(tokenizer.decode(output[0].tolist(), skip_special_tokens=True))
