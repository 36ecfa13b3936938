"""The kernels of dense attention, a file each; `zoo.layers.attention` chooses."""
