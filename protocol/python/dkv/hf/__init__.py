"""dkv for Hugging Face transformers.

    cache = dkv.hf.Cache(model, capacity=512)
    out = model.generate(**inputs, past_key_values=cache)
"""

from .cache import Cache
from .report import Report
from .save import save

__all__ = ["Cache", "Report", "save"]
