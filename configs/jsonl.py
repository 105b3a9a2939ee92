"""The former name of own.py, which says what it is: see there.

    python -m alol_jax.main --config=configs/own.py --workdir=runs/mine \
        --config.task.train_file=mine.jsonl
"""

from configs import own


def get_config(arg=None):
    config = own.get_config(arg)
    config.task.name = "jsonl"  # `load` says that it has another name
    return config
