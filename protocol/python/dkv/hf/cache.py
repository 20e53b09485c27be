"""A transformers Cache whose prompt is compressed by the sidecar.

    cache = dkv.hf.Cache(model, capacity=512)
    out = model.generate(**inputs, past_key_values=cache)
    print(cache.report())

Whatever fails, generation goes on with the rows there are, and report().failure says why.
"""

from __future__ import annotations

import copy
import inspect
import os
import sys
import weakref

import torch
from transformers.cache_utils import Cache as TransformersCache
from transformers.cache_utils import DynamicCache, DynamicLayer

import dkv
from dkv import parameters as table

from . import forks, options, wishes
from .announce import announce_prompts, too_short, unknown_layers, unwrapped, why_left_alone
from .arguments import DTYPES, changed, computed_otherwise, differing, masked_otherwise, not_understood, wants_weights
from .copies import Copyable
from .engines import engine_of
from .interface import Call, stand_in_front
from .layer import DkvLayer
from .place import place_of
from .prompt import Prompt
from .report import Report, mean
from .storage import Storage

_ROOM_TOKENS = 4096  # For what comes after a prompt that is kept whole; only virtual until written.


class Cache(Copyable, TransformersCache):
    """One sequence's cache. The model's attention implementation stays as it is, and acts while rows are whole.

    policy and its parameters are wishes: left out, the sidecar decides; what its operator has set goes before them.

    policy         "dynamickv", "snapkv", …: dkv policy list
    parameters     those of dkv.Policy, by name: capacity, window, kernel and so on (help(dkv.Policy))

    endpoint       the sidecar's; None: DKV_ENDPOINT, else this user's default
    progressive    layers' full rows are given back while prefill runs, not only at its end
    engine         a dkv.Engine to use instead of the one that all caches of this model share
    timeout_s      the longest wait at the end of prefill
    prompt_tokens  the whole prompt's length, for a prefill that the caller cuts into chunks himself;
                   generate(prefill_chunk_size=…) needs no help
    strict         an unknown policy or a bad parameter raises DkvError instead of being logged while
                   generation goes on uncompressed
    profile        how much this model's layers or heads matter, for dynamickv: a file of `dkv calibrate`,
                   a dkv.Profile, or "auto" for the one of this model, if there is one (profiles.py);
                   "auto" when the policy is auto or reuse, or none is named
    force_profile  also a file that was made for other weights of the same shape
    risk           0.05: size and parameters from the certificate that `dkv certify` stored in the profile for at
                   most this share of requests that lose much; a prompt that it does not hold for stays whole
    device         where the rows are; None: DKV_DEVICE in the environment, else where the model is. Another
                   device than the model's ("cuda" for one on the CPU) is for the emulation of CUDA only

    Raises TypeError for an unknown option, DkvError (INVALID_ARGUMENT) for a value of another type or range,
    ProfileError for a file that does not fit this model.

    Batch 1 without padding is compressed; anything else is kept as transformers would keep it, and report() says why:
    also a prompt whose model gives its attention more than dkv understands. For a model that makes a cache of its own
    class, generate() runs as if it had been given none.
    The first prompt is compressed; later generate() calls with the same cache continue it.
    copy.deepcopy(cache) shares the kept rows of a compressed prompt and goes on alone. After a fork each process
    goes on alone, too; in the child a cache whose prompt was not complete can only be reset().
    """

    max_cache_len = -1  # No bound. PEFT's prefix tuning asks, before it brings a cache of its own instead.

    def __init__(
        self,
        model: torch.nn.Module,
        policy: str | None = None,
        capacity: int | None = None,
        window: int | None = None,
        *,
        endpoint: str | None = None,
        progressive: bool = True,
        engine: dkv.Engine | None = None,
        timeout_s: float = 10.0,
        prompt_tokens: int | None = None,
        strict: bool = False,
        profile: str | os.PathLike | dkv.Profile | None = None,
        force_profile: bool = False,
        risk: float | None = None,
        device: object = None,
        **parameters: object,
    ):
        model = unwrapped(model)
        own = [name for name in inspect.signature(type(self)).parameters if name != "model"]
        table.refuse_unknown(type(self).__name__, parameters, own)
        wish = {"capacity": capacity, "window": window, **parameters}
        options.check(
            model, policy=policy, wish=wish, endpoint=endpoint, progressive=progressive, engine=engine, risk=risk,
            timeout_s=timeout_s, prompt_tokens=prompt_tokens, strict=strict, profile=profile, force_profile=force_profile,
        )  # fmt: skip
        self._wish, self._certificate = wishes.of(model, policy, wish, profile, force_profile, risk)
        self._left_alone = why_left_alone(model)  # Read by announce.py, too.
        self._dkv_layers: list[DkvLayer] = []
        super().__init__(layers=self._make_layers(model))
        self.layer_class_to_replicate = DynamicLayer  # For a model with more layers than this one's.
        self._progressive, self._timeout_s, self._strict = progressive, timeout_s, strict
        self._prompt_tokens = None if prompt_tokens is None else int(prompt_tokens)
        self._model = weakref.ref(model)
        self._config = model.config.get_text_config(decoder=True)
        self._endpoint = endpoint
        self._own_engine = engine
        self._device = device
        self._begin()
        stand_in_front(model)
        announce_prompts(model)
        self._start_engine(model)

    def _make_layers(self, model: torch.nn.Module) -> list:
        if self._left_alone is not None:
            return []
        layers = DynamicCache(config=model.config).layers
        for index, layer in enumerate(layers):
            if type(layer) is DynamicLayer:
                layers[index] = DkvLayer(self, index, len(self._dkv_layers))
                self._dkv_layers.append(layers[index])
        return layers

    def _begin(self) -> None:
        self._report = Report(layers=len(self._dkv_layers), layers_left_alone=len(self.layers) - len(self._dkv_layers))
        self._report.profile = self._wish["profile"].name if "profile" in self._wish else None
        self._report.certificate = self._certificate and self._certificate.name
        self._report.failure = self._left_alone
        if not self._dkv_layers and self._left_alone is None:
            self._report.failure = unknown_layers(self.layers)
            if self._report.failure is None:
                self._report.kept_whole = "no layer of this model keeps the whole text: nothing to compress"
        self._in_prefill = bool(self._dkv_layers)
        self._announced: int | None = None
        self._prompt: Prompt | None = None
        self._storage: Storage | None = None
        self._shape: tuple | None = None
        self._newest: DkvLayer | None = None  # Whose rows came last.
        self._held_back: Call | None = None  # Of the first layer; see _after_attention.
        self._complete = 0  # Layers that have all of the prompt.
        self._longest = 0  # What the text may grow to.
        self._note_process()

    # ---------------------------------------------------------------- for the user

    def report(self) -> Report:
        """What was done about the prompt, so far."""
        if self._in_prefill and self._newest is not None:
            self._look_at(self._newest)
        report, tokens = self._report, self._report.prompt_tokens
        if self._shape is None or not tokens:
            return report
        kv_heads, head_dim, dtype = self._shape
        row_bytes = 2 * head_dim * dtype.itemsize
        report.kept_per_head = [layer.kept_lengths(tokens, kv_heads) for layer in self._dkv_layers]
        report.kept_per_layer = [mean(lengths) for lengths in report.kept_per_head]
        report.mass_kept_per_layer = [1.0 if layer.prefix is None else layer.mass_kept for layer in self._dkv_layers]
        report.bytes_full = len(self._dkv_layers) * kv_heads * tokens * row_bytes
        report.bytes_kept = sum(map(sum, report.kept_per_head)) * row_bytes
        report.bytes_dropped = report.bytes_full - report.bytes_kept
        if self._storage is not None and not report.compressed:
            report.final_bytes = self._storage.allocated_bytes()
            report.peak_bytes = max(report.peak_bytes, report.final_bytes)
        return report

    def kept_positions(self, layer: int) -> list[list[int]] | None:
        """Of a layer of the model: the prompt positions kept, per KV head, ascending.

        None for a layer that is bounded by its own window, or whose rows are a fallback in no order.
        """
        found = self.layers[layer]
        if not isinstance(found, DkvLayer):
            return None
        if found.prefix is not None:
            return found.positions
        return [list(range(self._report.prompt_tokens))] * (self._shape[0] if self._shape else 1)

    def crop(self, tokens_to_remove: int) -> None:
        """Negative: that many tokens from the end. Positive, as in transformers 4: down to that length.

        Raises ValueError when tokens of a compressed prompt would go; then nothing is cropped.
        """
        for layer in self._dkv_layers:
            layer.check_crop(tokens_to_remove)
        if self._reads_prompt and any(layer.to_remove(tokens_to_remove) for layer in self._dkv_layers):
            self._go_plain("tokens were cropped before the prompt's end")
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        """Forgets everything and gives the memory back; the next forward begins a new prompt."""
        self._let_go("the cache was reset")
        super().reset()
        self._begin()

    def __del__(self):
        try:
            self._let_go("the cache was dropped")
        except Exception:  # Half-built, or the interpreter is going down.
            pass

    # ---------------------------------------------------------------- called by announce.py

    def _announce(self, prompt_tokens: int | None) -> None:
        """generate() is about to run this prompt, in one piece or in chunks."""
        if self._in_prefill and self._prompt is None:
            self._announced = prompt_tokens
        length = self.get_seq_length()
        if prompt_tokens is None or length == 0 or prompt_tokens > length:
            return
        if prompt_tokens < length or len(self._dkv_layers) < len(self.layers):
            raise too_short(prompt_tokens, length)
        # The last token is asked again: generate() would append it a second time.
        if all(layer.can_replay for layer in self._dkv_layers):
            for layer in self._dkv_layers:
                layer.replay()
        else:
            self.crop(-1)

    def _keep_whole(self, reason: str) -> None:
        """The next prompt is not to be compressed; one that was begun goes on."""
        if self._in_prefill and self._prompt is None:
            self._go_plain(reason)

    def _takes_guesses(self) -> bool:
        """Whether generate() may run guessed tokens now: not together with the prompt, which is scored at its end."""
        return self.get_seq_length() > 0 and not any(layer.replays for layer in self._dkv_layers)

    def _generate_ended(self) -> None:
        self._announced = None
        for layer in self._dkv_layers:
            layer.replay(False)
        if self._newest is not None and sys.exc_info()[0] is None:
            self._look_at(self._newest)
        if self._prompt is not None:
            self._go_plain(self._missing_layers() or "generate() ended before the prompt did")
        elif self._in_prefill and self._newest is None:
            self._go_plain("generate() ended and gave the cache no rows")

    # ---------------------------------------------------------------- called by the layers

    def _accepts(self, layer: DkvLayer, keys: torch.Tensor, values: torch.Tensor) -> bool:
        """Before a layer's first rows: can dkv hold them? Makes the storage with the first layer."""
        self._before_rows()
        if not self._in_prefill:
            return False
        shared = getattr(self._config, "num_kv_shared_layers", 0)
        reason = "layers of this model share K and V" if shared else differing(keys, values)
        if reason is None and self._storage is None:
            # Before there is an arena of each layer, which a prompt that stays whole would hold for nothing.
            tokens = self._prompt_tokens or self._announced or keys.shape[2]
            if outside := self._certificate and self._certificate.outside(tokens):
                self._stays_whole(tokens, outside)
                return False
            reason = self._make_storage(keys)
        if reason is None and self._shape != (keys.shape[1], keys.shape[3], keys.dtype):
            reason = f"layer {layer.index} is shaped unlike layer {self._dkv_layers[0].index}"
        if reason is not None:
            self._go_plain(reason)
        return reason is None

    def _storage_of(self, ordinal: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._storage.layer(ordinal)

    def _rows_come(self, layer: DkvLayer) -> None:
        last, self._newest = self._newest, layer
        if last is not None:
            self._look_at(last)

    def _before_rows(self) -> None:
        """Called before rows are written: from a fork on the storage is only read, since others see it."""
        if self._forks == forks.count():
            return
        if self._reads_prompt:
            if self._process != os.getpid():
                raise RuntimeError(
                    "this process was forked while the cache read its prompt, which the parent goes on with: "
                    "call reset() and run the prompt again, or fork after the prompt"
                )
        elif self._storage is not None:
            for layer in self._dkv_layers:
                layer.to_heap()
            self._storage = None
        self._note_process()

    def _look_at(self, layer: DkvLayer) -> None:
        """Whether the layer's rows were attended by a function that dkv stands in front of."""
        if layer.unattended and (self._in_prefill or layer.prefix is not None):
            layer.unattended = False
            reason = layer.unattended_reason(self._model())
            if layer.prefix is not None:
                raise RuntimeError(reason)
            self._report.prompt_tokens = self._report.prompt_tokens or layer.length
            self._go_plain(reason)

    def _before_attention(self, layer: DkvLayer, call: Call, given: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        self._before_rows()
        reason = self._misfit(layer, call, given)
        if reason is not None:
            self._report.prompt_tokens = self._report.prompt_tokens or layer.length
            self._go_plain(reason)
            return
        if layer.ordinal == 0 and self._prompt is None:
            self._open_prompt(layer.length, call.query)
        if layer.ordinal == 1:
            self._layer_done(self._dkv_layers[0])

    def _misfit(self, layer: DkvLayer, call: Call, given: tuple[torch.Tensor, torch.Tensor] | None) -> str | None:
        """Why dkv could not attend in place of this call once the layer is compressed."""
        if layer.ordinal == 0 and self._prompt is None and not self._is_of_model(call.module):
            kind = type(call.module).__name__
            return f"the cache was made for another model than that of this {kind}: make one with dkv.hf.Cache(model)"
        longest = max(self._longest, layer.length)
        return changed(call, given) or not_understood(call, longest) or masked_otherwise(call)

    def _after_attention(self, layer: DkvLayer, call: Call, out: torch.Tensor, weights: torch.Tensor | None) -> None:
        prompt = self._prompt
        if prompt is None:
            return
        reason = None
        if layer.length > prompt.tokens:
            said = f"{layer.length} tokens came where the prompt was said to have {prompt.tokens}"
            reason = self._missing_layers() or said
        elif layer.length == prompt.tokens and layer.ordinal != self._complete:
            reason = f"layer {layer.index} came out of turn: {self._complete} layers before it are complete"
        elif not prompt.active:
            pass  # Kept whole, by plan or for want of a sidecar.
        elif weights is not None and wants_weights(call):
            reason = "output_attentions=True: a compressed layer has no attention weights over the tokens it dropped"
        else:
            reason = computed_otherwise(call, out)
        if reason is not None:
            self._go_plain(reason)
            return
        layer.has_weights = weights is not None
        prompt.push_queries(layer.ordinal, call.query)
        if layer.length < prompt.tokens:
            return
        self._held_back = call
        self._complete += 1
        # The first layer is told with the second: a model that attends twice per layer shows it before.
        if layer.ordinal > 0 or len(self._dkv_layers) == 1:
            self._layer_done(layer)
        if layer.ordinal + 1 == len(self._dkv_layers):
            self._end_prompt()

    def _layer_done(self, layer: DkvLayer) -> None:
        call, self._held_back = self._held_back, None
        if call is not None and self._prompt is not None:
            self._prompt.layer_done(layer.ordinal, call.scaling, call.softcap, call.sinks)

    def _missing_layers(self) -> str | None:
        count = len(self._dkv_layers)
        return f"the model filled {self._complete} of the {count} layers of its cache" if self._complete else None

    def _is_of_model(self, module: torch.nn.Module) -> bool:
        model = self._model()
        return model is not None and any(module is own for own in model.modules())

    # ---------------------------------------------------------------- a prompt's life

    def _open_prompt(self, seen: int, query: torch.Tensor) -> None:
        tokens = max(self._prompt_tokens or self._announced or seen, seen)
        if tokens == 1:
            return self._stays_whole(tokens, "a prompt of one token: nothing to compress")
        self._report.prompt_tokens = tokens
        self._prompt = Prompt(self._dkv_layers, self._storage, tokens, self._report, self._timeout_s)
        engine = self._engine(query)
        if engine is not None:
            policy = dkv.Policy(**self._wish) if self._wish else None
            self._prompt.open(engine, policy, self._progressive, query.shape[1], self._strict)

    def _stays_whole(self, tokens: int, reason: str) -> None:
        self._in_prefill = False
        self._report.prompt_tokens, self._report.kept_whole = tokens, reason

    def _end_prompt(self) -> None:
        prompt, self._prompt = self._prompt, None
        self._in_prefill = False
        if not prompt.end():
            self._storage = None
        self._warn_once()

    def _go_plain(self, reason: str) -> None:
        """This text is generated without dkv from here on."""
        self._in_prefill, self._held_back = False, None
        prompt, self._prompt = self._prompt, None
        if prompt is not None:
            prompt.abandon(reason)
        self._report.failure = self._report.failure or reason
        self._warn_once()

    def _let_go(self, reason: str) -> None:
        """Memory goes with the last view of it, which a copy or another process may have; that of a prompt under
        way is no use to either, and goes now."""
        prompt, self._prompt = self._prompt, None
        if prompt is not None:
            prompt.abandon(reason)
        if self._reads_prompt and self._process == os.getpid():
            self._storage.discard()
        self._storage = None

    # ---------------------------------------------------------------- copies and forks

    def activate_past_recording(self) -> None:
        """Called before guessed tokens come. Where the prompt's length is not known they would count as prompt."""
        if self._announced is None and self._prompt_tokens is None:
            self._keep_whole(
                "tokens are guessed, and the prompt's length is not known: call model.generate(), or give prompt_tokens"
            )
        super().activate_past_recording()

    @property
    def _reads_prompt(self) -> bool:
        return self._in_prefill and self._storage is not None

    def _note_process(self) -> None:
        self._process, self._forks = os.getpid(), forks.count()

    def _why_not_copied(self) -> str | None:
        if self._reads_prompt:
            return "it is reading its prompt: copy it when the prompt has ended, or reset() it"
        return None

    def _was_copied(self) -> None:
        self._dkv_layers = [layer for layer in self.layers if isinstance(layer, DkvLayer)]
        self._report = copy.deepcopy(self.report())
        self._storage = self._announced = self._newest = self._held_back = None
        self._note_process()

    # ---------------------------------------------------------------- helpers

    def _make_storage(self, keys: torch.Tensor) -> str | None:
        tokens = max(self._prompt_tokens or 0, self._announced or 0, keys.shape[2])
        most = self._longest = max(tokens, getattr(self._config, "max_position_embeddings", 0) or 0)
        self._shape = (keys.shape[1], keys.shape[3], keys.dtype)
        try:
            with self._report.timed():
                place = place_of(self._device, keys.device)
                # Of a device every row exists: what comes after a prompt that is kept whole moves out of here.
                room = min(most, tokens + max(tokens, _ROOM_TOKENS)) if place.sparse else tokens
                self._storage = Storage(
                    len(self._dkv_layers), keys.shape[1], keys.shape[3], room, keys.dtype, place
                )
        except dkv.DkvError as error:
            return f"no shared memory: {error}"
        return None

    def _start_engine(self, model: torch.nn.Module) -> None:
        """Early, so that it is attached when the prompt comes. Its geometry is checked then."""
        config = self._config
        try:
            q_heads = config.num_attention_heads
            kv_heads = getattr(config, "num_key_value_heads", None) or q_heads
            head_dim = getattr(config, "head_dim", None) or config.hidden_size // q_heads
        except Exception:  # Other names, or other numbers in each layer: the prompt's rows will tell.
            return
        dtype = getattr(model, "dtype", None)
        if not self._dkv_layers:
            return
        if isinstance(kv_heads, int) and isinstance(head_dim, int) and dtype in DTYPES:
            self._shared_engine(q_heads, kv_heads, head_dim, dtype)

    def _engine(self, query: torch.Tensor) -> dkv.Engine | None:
        kv_heads, head_dim, dtype = self._shape
        return self._shared_engine(query.shape[1], kv_heads, head_dim, dtype)

    def _shared_engine(self, q_heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> dkv.Engine | None:
        model = self._model()
        if self._own_engine is not None:
            return self._own_engine
        if model is None:
            self._report.failure = "the model that the cache was made for is gone"
            return None
        try:
            device = place_of(self._device, model.device).device
            return engine_of(model, self._endpoint, device, len(self._dkv_layers), q_heads, kv_heads, head_dim, dtype)
        except dkv.DkvError as error:
            self._report.failure = f"{error.status.name.lower()}: {error}"
            return None

    def _warn_once(self) -> None:
        self._report.warn_once(id(self._model()))


# What help() and editors show: every parameter of a policy by its name.
Cache.__init__.__signature__ = table.signature(Cache.__init__, "endpoint")
