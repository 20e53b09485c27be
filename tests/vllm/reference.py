"""An independent computation: transformers in float32, with a mask per layer and KV head. It knows nothing of blocks."""

from __future__ import annotations

import torch
from transformers import AttentionInterface, AutoModelForCausalLM


class Reference:
    def __init__(self, model: str, weights: torch.dtype = torch.float32):
        """weights: rounded to this type, as an engine has them; what is computed with them is float32."""
        self._kept: list | None = None  # [layer][KV head] positions of the prompt that may be seen; None: all.
        self._tokens = 0
        own = f"dkv_masked_{id(self)}"
        AttentionInterface.register(own, self._attend)
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=weights).float().eval()
        self._model.set_attn_implementation(own)

    def _attend(self, module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        groups = query.shape[1] // key.shape[1]
        keys, values = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        rows, width = query.shape[2], key.shape[2]
        logits = (query @ keys.transpose(2, 3)).float() * scaling
        future = torch.arange(width)[None, :] > (width - rows + torch.arange(rows))[:, None]
        logits = logits.masked_fill(future, float("-inf"))
        if self._kept is not None:
            for head, kept in enumerate(self._kept[module.layer_idx]):
                gone = torch.ones(width, dtype=torch.bool)
                gone[self._tokens :] = False
                gone[kept] = False
                logits[:, head * groups : (head + 1) * groups, :, gone] = float("-inf")
        return (logits.softmax(-1).to(values.dtype) @ values).transpose(1, 2).contiguous(), None

    @torch.no_grad()
    def worst(self, prompt: list[int], answer, kept=None) -> float:
        """The largest |difference| of a top-5 logprob of `answer` to this model's; kept: an engine.Kept, None: all.

        Of a request that was preempted: of what it said after its last prefill, which read all that it had said before.
        """
        said = 0 if kept is None else kept.tokens - len(prompt)
        assert said < len(answer.tokens)
        prompt = prompt + answer.tokens[:said]
        self._kept, self._tokens = None, len(prompt)
        output = self._model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
        worst = 0.0
        for step, (token, chances) in enumerate(zip(answer.tokens[said:], answer.logprobs[said:])):
            expected = output.logits[0, -1].log_softmax(-1)
            worst = max([worst, *(abs(float(expected[each]) - chance) for each, chance in chances.items())])
            self._kept = None if kept is None or step + 1 < kept.after else kept.positions
            output = self._model(torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True)
        return worst
