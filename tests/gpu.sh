#!/usr/bin/env bash
# All GPU measurements in one run, from the repository's root:  bash tests/gpu.sh DATA_DIR
# DATA_DIR holds full-size files (data/synthetic.py writes such). Results: benchmark tables, and the time of two whole runs.
set -euo pipefail
data=$1
for precision in fp32 tf32 bf16; do
    python tests/benchmark.py --data_dir "$data" --device cuda --precision "$precision" --features auto memory disk \
        --steps 60 --json "benchmark_$precision.json"
done
for setting in fully weakly; do
    time python "${setting}_supervised_main.py" --train --data_dir "$data" --device cuda --precision tf32 --output_dir "model/gpu"
done
