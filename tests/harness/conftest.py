"""A finished run for lm-eval."""

import pytest

from tests.finished_run import config_of, finished_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a tiny random Llama, whose base is the chat tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("run") / "workdir"
    return folder, finished_run(folder, config_of("random:llama-tiny"))
