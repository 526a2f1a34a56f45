#!/usr/bin/env bash
# All measurements on a GPU, the most important first, within about 15 minutes:  bash tests/gpu.sh [DATA_DIR]
# DATA_DIR is made if it does not exist: a synthetic set of full size, 2.2 GB. Stop it at any time.
set -uo pipefail
cd "$(dirname "$0")/.."
data=${1:-data/full16}

echo "== the dtype in which an LSTM computes under bf16"
python - <<'PYTHON'
import torch
from psp_model import LSTM
features = torch.rand(2, 10, 128, device="cuda", dtype=torch.bfloat16)
with torch.autocast("cuda", torch.bfloat16):
    for lstm in (torch.nn.LSTM(128, 128, batch_first=True), LSTM(128, 128)):
        output = lstm.cuda()(features)[0]
        print(type(lstm).__module__, output.dtype, output.grad_fn)
PYTHON

[ -d "$data" ] || python data/synthetic.py --output_dir "$data" --dtype float16 --train 3339 --val 402 --test 402 --background 178

echo "== two epochs from each place of the features"
for features in auto memory disk; do
    for setting in fully weakly; do
        python ${setting}_supervised_main.py --train --data_dir "$data" --device cuda --features $features --nb_epoch 2 \
            --output_dir model/gpu_$features || echo "failed: $setting $features"
    done
done

echo "== steps"
for precision in fp32 tf32 bf16; do
    for setting in fully weakly; do
        python tests/benchmark.py --data_dir "$data" --device cuda --precision $precision --setting $setting --steps 60
    done
done

echo "== a whole run"
time python fully_supervised_main.py --train --data_dir "$data" --device cuda --precision tf32 --output_dir model/gpu

echo "== the tests"
TEST_DEVICE=cuda python -m pytest -q tests
