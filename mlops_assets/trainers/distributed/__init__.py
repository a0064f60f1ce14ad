"""One fit of a torch net by several workers, that comes to the model of a fit alone, to rounding.

Each worker takes its part of every batch (`team`), and torch's DistributedDataParallel averages the gradients. They
are processes of this machine (`processes`), or of a Ray cluster where the training itself is a task there (`on_ray`);
both do the same (`worker`), read the same files (`job`), and begin again from the last checkpoint when one is lost.
"""
