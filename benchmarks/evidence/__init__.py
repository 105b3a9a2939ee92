"""Experiments for a sceptical reader of the paper, each resumable, and the figures of them.

What runs (can be stopped at any time; the same command goes on):

* `labels`, `noise`, `order`, `candidates`: policies; `best_of_n` is a part of `order`;
* `value`: what V(x) can know of the labels;
* `samples` and `relabel`: answers for readers who do not know whose they are.

What is written of it, all by `draw`: `collect` reads finished runs (`stored`) into small JSON files
(`merging` joins those of several days); `summaries` and `pairs` make numbers of these, `tables`,
`paid` and `relabelled` tables, `figures` figures, and `side_by_side` texts to read.

A *look* is a validation of the policy during training: the mean reward of its answers, and their KL
to the reference. A *variant* is an objective with another setting: an ablation, or another learning
rate or beta (*dialled*). Start reading at `running`, which all experiments use.
"""
