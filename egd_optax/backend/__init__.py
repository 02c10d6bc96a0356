"""How programs are laid out for XLA; knows nothing of what they compute.

xla      tricks on the compiler, each with a name and a test
random   normal numbers from keys and counters
packing  small arrays side by side
memory   pages in device memory, in pinned host memory, or nowhere
devices  one device, or the devices along an axis
"""
