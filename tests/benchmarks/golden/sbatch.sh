#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --array=0-2%3
#SBATCH --comment=planet
#SBATCH --constraint='a100|h100'
#SBATCH --core-spec=1
#SBATCH --cpus-per-task=8
#SBATCH --error=/shared/planet/runs/paper/slurm/SUBMISSION/%A_%a_0_log.err
#SBATCH --exclude='node[3-4]'
#SBATCH --exclusive
#SBATCH --gpus-per-node=a100:1
#SBATCH --job-name=planet-dmc6-SUBMISSION
#SBATCH --mail-type=END
#SBATCH --mail-user=me@lab.de
#SBATCH --mem=32768M
#SBATCH --nice=100
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/planet/runs/paper/slurm/SUBMISSION/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=normal
#SBATCH --requeue
#SBATCH --reservation=course
#SBATCH --signal=USR2@180
#SBATCH --time=720

# setup
{
module load cuda/12
} || { echo 'set-up line failed: module load cuda/12' >&2; exit 1; }
{
source 'my env'/bin/activate
} || { echo 'set-up line failed: source '"'"'my env'"'"'/bin/activate' >&2; exit 1; }

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/planet/runs/paper/slurm/SUBMISSION/%A_%a_%t_log.out --error /shared/planet/runs/paper/slurm/SUBMISSION/%A_%a_%t_log.err --cpus-per-task=8 --cpu-bind=cores bash -c 'trap "" USR2; exec "$@"' bash apptainer exec --nv planet.sif python -u -m submitit.core._submit /shared/planet/runs/paper/slurm/SUBMISSION
