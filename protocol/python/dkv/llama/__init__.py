"""dkv for llama.cpp from Python, over libdkv_llama: works with the bindings' own contexts.

    watch = dkv.llama.Watch(params, library=path_of_libllama)  # Before the context is made.
    context = lib.llama_init_from_model(model, params)
    watch.attach(context)
    watch.begin()
    ...  # llama_decode the prompt, in any number of batches
    report = watch.compress(dkv.Policy(capacity=512, profile=dkv.llama.find_profile("model.gguf")))

docs/LLAMA_ATTACH.md says what is supported.
"""

from .profiles import find as find_profile
from .watch import Report, Watch

__all__ = ["Report", "Watch", "find_profile"]
