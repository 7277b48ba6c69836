"""Text from a pipeline: ``python examples/hf_pipeline.py [MODEL]``, a folder or a Hub name."""

import sys

from transformers import pipeline

import wkv.api

model_id = sys.argv[1] if len(sys.argv) > 1 else str(wkv.api.BUNDLED)
prompt = "It was a dark night, and a herd of dragons was seen in the valley,"

pipe = pipeline("text-generation", model=model_id)
print(pipe(prompt, max_new_tokens=20)[0]["generated_text"])
