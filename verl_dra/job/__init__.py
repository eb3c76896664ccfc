"""What runs on the nodes of a Slurm job beside the training, and the CPUs that a run books."""
