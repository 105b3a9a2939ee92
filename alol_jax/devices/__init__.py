"""What touches the hardware: the device mesh and how arrays lie on it.

Start at `sharding`: the mesh (data, fsdp, tensor) and the one partition table of all families.
`compile_cache` keeps compiled programs on disk.
"""
