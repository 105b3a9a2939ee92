"""Everything that depends on the hardware: the device mesh and the sharding of arrays.

Start at `sharding`: the mesh (data, fsdp, tensor) and the partition table of all model families.
"""
