"""How programs are laid out for XLA; knows nothing of what they compute.

xla         tricks on the compiler, each with a name and a test
arithmetic  sums that are the same to the bit wherever they are computed
random      normal numbers from keys and counters
packing     small arrays side by side
unpacking   arrays out of their blocks, each in a buffer of its own
memory      pages in device memory, in pinned host memory, or nowhere
devices     one device, or the devices along an axis
"""
