"""Everything that depends on the hardware: the device mesh and the sharding of arrays.

Start at `sharding`: the mesh (data, fsdp, tensor) and the one partition table of all families.
`hardware` knows what a machine has, and `opening` asks JAX for it. `compile_cache` keeps compiled
programs on disk. Imports only `types`.
"""
