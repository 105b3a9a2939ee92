"""llama.cpp itself, by the package xllamacpp, on files that we write."""

import json
import urllib.request
from importlib.util import find_spec

import numpy as np
import pytest

needs_llama_cpp = pytest.mark.skipif(
    find_spec("xllamacpp") is None, reason="pip install --no-deps xllamacpp==2026.10.11549: absent"
)
FORCED = 44  # an id whose text is one ASCII character: its probabilities are not withheld


class LlamaCpp:
    """A file that llama.cpp has loaded, in float32."""

    def __init__(self, file) -> None:
        import xllamacpp as x

        params = x.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel = 512, 1
        params.cache_type_k = params.cache_type_v = x.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cpuparams.n_threads = 1
        params.warmup = params.fit_params = False
        self._server = x.Server(params)

    def logp(self, ids) -> np.ndarray:
        """f32[V], the log-probabilities of the token behind ``ids``."""
        asked = {
            "prompt": [int(i) for i in ids],
            "n_predict": 1,
            "n_probs": 1_000_000,
            "temperature": 0.0,
            "logit_bias": [[FORCED, 100.0]],  # of what is drawn, not of what is reported
            "cache_prompt": False,
        }
        said = self._server.handle_completions(asked)["choices"][0]["logprobs"]["content"][0]
        found = np.full(len(said["top_logprobs"]), np.nan, np.float32)
        for one in said["top_logprobs"]:
            found[one["id"]] = one["logprob"]
        return found

    def ids(self, text: str) -> list[int]:
        """The ids of a text, without a begin token."""
        asked = json.dumps({"content": text, "add_special": False, "parse_special": True})
        request = urllib.request.Request(
            f"{self._server.listening_address}/tokenize",
            data=asked.encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]
