"""Ways to execute runs, interchangeable: `inline` (this process), `local` (a pool of slots), `slurm` (submitit)."""
