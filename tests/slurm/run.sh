#!/usr/bin/env bash
# Five folds on a real Slurm of one node, installed from Debian's packages. By hand, as root, in a container or a virtual
# machine that may be changed:
#
#     tests/slurm/run.sh PYTHON_ENVIRONMENT FOLDER
#
# PYTHON_ENVIRONMENT: where `pip install '.[cluster]'` was done. FOLDER: gets nnU-Net's three folders. Trains the five
# folds of a small made-up data set for MINUTES (1) each; ends with exit code 0 if all folds finished and their
# validations are merged. With a time limit that they cannot keep (TIMEOUT_MIN=3) they are requeued and go on.
set -euo pipefail
environment=$(realpath "$1")
mkdir -p "$2"
folder=$(realpath "$2")
here=$(dirname "$(realpath "$0")")

DEBIAN_FRONTEND=noninteractive apt-get install -y -q slurm-wlm munge > "$folder/apt.log"
mkdir -p /etc/slurm /var/spool/slurmd /var/spool/slurmctld /run/munge
chown munge: /run/munge
cat > /etc/slurm/slurm.conf <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdSpoolDir=/var/spool/slurmd
StateSaveLocation=/var/spool/slurmctld
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdLogFile=/var/log/slurmd.log
SlurmUser=root
ReturnToService=2
JobRequeue=1
KillWait=30
NodeName=$(hostname -s) CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
pgrep -x munged > /dev/null || runuser -u munge -- /usr/sbin/munged
pgrep -x slurmctld > /dev/null || slurmctld
pgrep -x slurmd > /dev/null || slurmd
for _ in $(seq 30); do sinfo -h -o %T | grep -q idle && break; sleep 1; done
sinfo

export nnUNet_raw=$folder/raw nnUNet_preprocessed=$folder/preprocessed nnUNet_results=$folder/results
export nnUNet_n_proc_DA=0 nnUNet_def_n_proc=1 PATH=$environment/bin:$PATH
mkdir -p "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results"
python "$here/make_dataset.py" "$nnUNet_raw"
ldseg_plan_and_preprocess -d 901 -c 3d_fullres -np 1 -npfp 1
ldseg_train 901 0 1 2 3 4 -c 3d_fullres -device cpu --max_minutes "${MINUTES:-1}" --cluster slurm \
    --cluster_options timeout_min="${TIMEOUT_MIN:-20}" gpus_per_node=0 cpus_per_task=1
squeue
while [ -n "$(squeue -h)" ]; do sleep 5; done
if command -v sacct > /dev/null && sacct -n > /dev/null 2>&1; then sacct -X; fi
ls "$nnUNet_results"/*/*/
model=$(echo "$nnUNet_results"/*/LDSegTrainer__LDSegPlans__3d_fullres)
test -f "$model/crossval_results_folds_0_1_2_3_4/summary.json"
python -c "import json, sys; print(json.load(open(sys.argv[1]))['foreground_mean'])" \
    "$model/crossval_results_folds_0_1_2_3_4/summary.json"
