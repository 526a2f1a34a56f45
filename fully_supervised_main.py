"""Trains or evaluates PSP with a label for every segment (fully supervised).

    python fully_supervised_main.py --model_name PSP --threshold=0.099 --train
    python fully_supervised_main.py --model_name PSP --trained_model_path ./model/PSP_fully.pt
"""
from functools import partial

import torch

import utils
from dataset import FEATURES, TrainingBatches, shuffled
from model.checkpoint import save_checkpoint
from model.released_training import StaleTargets, draw_released_weights, released_order
from model.run import Run
from psp_model import PSPNetwork, avps_target, fully_supervised_loss


def options():
    parser = utils.psp_options(__doc__, "fully")
    parser.training.add_argument("--LAMBDA", type=utils.bounded(float, 0), default=100,
                                 help="weight of the audio-visual pair similarity loss L_avps (default: %(default)s)")
    return utils.parse_options(parser)


def train(args, data, device):
    """Trains on data["train"] and keeps the checkpoint of the best check on validation; returns the run's results."""
    utils.set_seed(args.seed)
    rank, world_size = utils.rank_and_world_size()
    quirks = args.released_quirks

    order = released_order if "released_order" in quirks else shuffled
    videos = data["train"].only(*FEATURES, "labels")
    batches = TrainingBatches(videos, args.batch_size, args.seed, device, order, rank, world_size)
    background = data["train"].sizes.background
    target_of = StaleTargets(background) if "stale_avps" in quirks else partial(avps_target, background=background)

    arguments = utils.network_arguments(args, "fully", data["train"].sizes)
    network = PSPNetwork(**arguments)
    if "initial_weights" in quirks:
        draw_released_weights(network, "fully", args.seed)
    network.to(device)
    model = utils.prepare(network, args.precision)      # the network in its precision (and for several processes)

    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr, fused=True)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[60, 120], gamma=0.8)

    header = utils.run_header(args, "fully", arguments, data, device)
    with Run(args, header, network, optimizer, schedule, batches.steps, writes=rank == 0) as run:
        if "stale_avps" in quirks:
            target_of.pass_over(batches, run.start)                 # what the epochs before have left in the buffer
        for epoch in range(run.start, args.nb_epoch):               # from 0, or where --resume continues
            model.train()
            for batch in batches.epoch(epoch):
                output = model(batch["audio"], batch["visual"])
                loss = fully_supervised_loss(output, batch["labels"], target_of(batch["labels"]), args.LAMBDA)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.add(loss)
            record = {"epoch": epoch, "loss": run.mean_loss(epoch), "lr": schedule.get_last_lr()[0]}
            schedule.step()

            check = epoch > 0 and epoch % args.check_epoch == 0     # as released, epoch 0 is not a check
            if (check or epoch == args.nb_epoch - 1) and rank == 0:
                val, test = (utils.predict(model, data[split], args.batch_size) for split in ("val", "test"))
                record |= {"val_accuracy": val.accuracy, "test_accuracy": test.accuracy}
                score = val.accuracy                                # chooses the checkpoint
                if check or run.checks == 0:                        # else the last epoch is only reported
                    run.add_check(record, test)
                    if score > run.best_score:
                        run.set_best(score, record, test)
                        save_checkpoint(run.checkpoint_path, network, header, record)
            run.end_epoch(record)
        return run.report()


def main():
    args = options()
    if args.trained_model_path:
        utils.evaluate_checkpoint(args, "fully", PSPNetwork)
        return
    device = utils.set_up_device(args.device, args.precision)
    data = utils.read_data(args, "fully", ["train", "val", "test"], device)
    results = [train(seed_args, data, device) for seed_args in utils.each_seed(args, "fully")]
    utils.report_runs(args, "fully", results, data["test"])


if __name__ == "__main__":
    with utils.one_line_errors():
        main()
