#!/usr/bin/env bash
# All GPU measurements in one run, from the repository's root:  bash tests/gpu.sh DATA_DIR
# DATA_DIR holds full-size files (data/synthetic.py writes such). Prints benchmark rows, and times two whole runs.
set -euo pipefail
for precision in fp32 tf32 bf16; do
    for features in auto memory disk; do
        python tests/benchmark.py --data_dir "$1" --device cuda --precision $precision --features $features --steps 60
    done
done
for setting in fully weakly; do
    time python ${setting}_supervised_main.py --train --data_dir "$1" --device cuda --precision tf32 --output_dir model/gpu
done
