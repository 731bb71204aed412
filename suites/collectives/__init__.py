"""Collectives: what several ranks do together, measured by torch.distributed under torchrun or Slurm."""
