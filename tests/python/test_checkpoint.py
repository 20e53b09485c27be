"""A model's fingerprint from its folder: what an engine that loads weights itself finds a profile by."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from dkv.hf import checkpoint, profiles
from dkv.hf.profile_file import ProfileError


@pytest.mark.parametrize("shard", ["1GB", "100KB"], ids=["one file", "several"])
def test_a_folder_has_the_fingerprint_of_the_model_that_is_loaded_from_it(tiny_llama, tmp_path, shard):
    tiny_llama.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "100KB")

    found = checkpoint.describe(tmp_path, AutoConfig.from_pretrained(tmp_path))

    known = profiles.describe(tiny_llama)
    assert found["weights"] == known["weights"] and found["geometry"] == known["geometry"]


def test_a_folder_without_matrices_of_keys_and_values_is_refused(tiny_llama, tmp_path):
    tiny_llama.config.save_pretrained(tmp_path)

    with pytest.raises(ProfileError, match="has no safetensors with k_proj.weight and v_proj.weight"):
        checkpoint.describe(tmp_path, AutoConfig.from_pretrained(tmp_path))
