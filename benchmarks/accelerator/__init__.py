"""What this code does on an accelerator: values, step times, memory, decoding.

Start at `__main__`, which runs the parts of `parts` one after the other, each in a process of its
own. `kernels` compares values and times kernels, `values` whole models, `steps` times training,
`profile` says where a step's time goes, `answers` times decoding, `pytorch` is what others do.
"""
