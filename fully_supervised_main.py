"""Trains or evaluates PSP with a label for every segment (fully supervised).

    python fully_supervised_main.py --model_name PSP --threshold=0.099 --train
    python fully_supervised_main.py --model_name PSP --trained_model_path ./model/PSP_fully.pt
"""
import torch

import utils
from model.avel import avel_fully_supervised_loss, avel_milestones
from model.checkpoint import build_network
from model.processes import train_together
from model.released_init import draw_released_weights
from model.run import Run
from psp_model import fully_supervised_loss


def options():
    parser = utils.main_options(__doc__, "fully")
    parser.training.add_argument("--LAMBDA", type=utils.bounded(float, 0), default=100,
                                 help="weight of the audio-visual pair similarity loss L_avps (default: %(default)s)")
    return utils.parse_options(parser)


def train(args, data, device):
    """Trains on data["train"] and keeps the checkpoint of the best validation accuracy; returns the run's results."""
    utils.set_seed(args.seed)
    batches = utils.training_batches(args, data["train"], device)

    config = utils.network_config(args, "fully", data["train"].sizes)
    network = build_network(args.model_name, config)
    if "initial_weights" in args.released_quirks:
        draw_released_weights(network, "fully", args.seed)
    network.to(device)

    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr, fused=True)
    decay = dict(milestones=[60, 120], gamma=0.8)
    if args.model_name == "AVEL":
        decay = dict(milestones=avel_milestones(len(batches), args.nb_epoch), gamma=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, **decay)
    train_together(network, optimizer)

    with Run(args, "fully", config, network, optimizer, schedule, data, steps=len(batches)) as run:
        for epoch in run.epochs():                  # from 0, or from where a stopped run goes on
            network.train()
            for batch in batches.epoch(epoch):      # drawn anew each epoch, on the device
                output = utils.forward(network, batch, args.precision)
                if args.model_name == "AVEL":
                    loss = avel_fully_supervised_loss(output, batch["labels"])
                else:
                    loss = fully_supervised_loss(output, batch["labels"], args.LAMBDA, batch.get("avps_target"))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.add(loss)
            run.end_steps()                         # a loss that is not finite ends the run here

            if run.is_check(epoch):
                val = utils.predict(network, data["val"], args.batch_size, args.precision)
                test = utils.predict(network, data["test"], args.batch_size, args.precision)
                run.keep_best(val, test, score=val.accuracy, name="accuracy")
            schedule.step()
            run.end_epoch()
        return run.report()


def main():
    args = options()
    if args.trained_model_path:
        utils.evaluate_checkpoint(args, "fully")
        return
    device = utils.select_device(args)
    data = utils.read_data(args, "fully", ["train", "val", "test"], device)
    results = [train(seed_args, data, device) for seed_args in utils.each_seed(args)]
    utils.report_runs(args, results, data["test"])


if __name__ == "__main__":
    with utils.one_line_errors():
        main()
