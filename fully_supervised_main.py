"""Trains or evaluates PSP with a label for every segment (fully supervised).

    python fully_supervised_main.py --model_name PSP --threshold=0.099 --train
    python fully_supervised_main.py --model_name PSP --trained_model_path ./model/PSP_fully.pt
"""
import os
from functools import partial

import torch

from dataset import FEATURES, TrainingBatches, network_inputs, shuffled
from model.checkpoint import save_checkpoint
from model.data import read_data
from model.evaluate import evaluate_checkpoint, predict, train_seeds
from model.options import chosen_args, data_sizes, parse_options, psp_options, run_header
from model.run import Run
from psp_model import FULLY_SUPERVISED, PSPNetwork, avps_target, fully_supervised_loss
from utils import bounded, one_line_errors, set_seed, set_up_device, wrap_for_training


def options():
    parser = psp_options(__doc__, "fully", threshold=0.099)
    parser.loss.add_argument("--LAMBDA", type=bounded(float, 0), default=100,
                             help="weight of the audio-visual pair similarity loss L_avps (default: %(default)s)")
    parser.set_defaults(nb_epoch=300, batch_size=128, lr=1e-3)
    return parser


def batch_targets(background, batches, start):
    """The function of a batch's labels that gives its targets of L_avps; another may need the batches before start."""
    return partial(avps_target, background=background)


def train(args, data, device, order=shuffled, initialise=None, avps_targets=batch_targets):
    """Trains on data["train"] and keeps the checkpoint of the check with the highest score; returns the run's results.

    order: of the videos, see `TrainingBatches`. initialise: called with the network, to change its initial weights.
    avps_targets: see `batch_targets`.
    """
    set_seed(args.seed)
    batches = TrainingBatches(data["train"].only(*FEATURES, "labels"), args.batch_size, args.seed, device, order)
    sizes = data["train"].sizes

    network_args = {**data_sizes(sizes), **FULLY_SUPERVISED, **chosen_args(args)}
    network = PSPNetwork(**network_args)
    if initialise is not None:
        initialise(network)
    network.to(device)
    model = wrap_for_training(network, args.precision)

    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr, fused=True)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[60, 120], gamma=0.8)

    header = run_header(args, network_args, data, device, __file__)
    with Run(args, header, network, optimizer, schedule, batches.steps) as run:
        make_target = avps_targets(sizes.background, batches, run.start)
        for epoch in range(run.start, args.nb_epoch):               # from 0, or where --resume continues
            model.train()
            for batch in batches.epoch(epoch):
                output = model(*network_inputs(batch))
                loss = fully_supervised_loss(output, batch["labels"], make_target(batch["labels"]), args.LAMBDA)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.add(loss)
            record = run.end_steps(epoch)
            schedule.step()

            check = epoch > 0 and epoch % args.check_epoch == 0     # as in the released code, no check at epoch 0
            if (check or epoch == args.nb_epoch - 1) and run.writes:
                val, test = (predict(model, data[split], args.batch_size) for split in ("val", "test"))
                score = val.accuracy                                # the check with the highest is kept; or None
                record |= {"val_accuracy": val.accuracy, "test_accuracy": test.accuracy, "kept_pairs": test.kept_pairs,
                           "score": None if score is None else float(score)}
                best = run.best_score                               # None before the first one
                if check or best is None:                           # otherwise the last epoch is only reported
                    kept = best is None or (score is not None and score > best)
                    if kept:
                        save_checkpoint(run.checkpoint_path, network, header, record)
                    run.note_check(record, test, kept)
            run.end_epoch(record)
        return run.report()


def main(args=None, train=train):
    """Evaluates or trains as the options say; train: may call `train` with other arguments."""
    args = args or parse_options(options())
    if args.trained_model_path:
        evaluate_checkpoint(args, PSPNetwork, __file__)
        return
    device = set_up_device(args.device, args.precision)
    data = read_data(args, ["train", "val", "test"], device)
    train_seeds(args, train, data, device)


if __name__ == "__main__":
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")              # huge pages: a batch is made faster
    with one_line_errors():
        main()
