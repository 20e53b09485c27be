"""dkv for llama.cpp from Python, over libdkv_llama: works with the bindings' own contexts.

    watch = dkv.llama.Watch(params, library=path_of_libllama)  # Before the context is made.
    context = lib.llama_init_from_model(model, params)
    watch.attach(context)
    watch.begin()
    ...  # llama_decode the prompt, in any number of batches
    report = watch.compress(dkv.Policy(capacity=512))

docs/LLAMA_ATTACH.md says what is supported.
"""

from .watch import Report, Watch

__all__ = ["Report", "Watch"]
