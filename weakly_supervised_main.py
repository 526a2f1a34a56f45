"""Trains or evaluates PSP with labels for whole videos only (weakly supervised).

    python weakly_supervised_main.py --model_name PSP --threshold=0.095 --train
    python weakly_supervised_main.py --model_name PSP --trained_model_path ./model/PSP_weakly.pt
"""
import torch
from torch.nn.functional import one_hot

import utils
from model.avel import avel_milestones, avel_weakly_supervised_loss
from model.checkpoint import build_network
from model.processes import train_together
from model.released_init import draw_released_weights
from model.run import Run
from psp_model import weakly_supervised_loss


def options():
    parser = utils.main_options(__doc__, "weakly")
    parser.ablations.add_argument("--weak_labels", choices=["share", "tag"], default="share",
                                  help="training target: the share of event and background in each video "
                                       "(prob_label.h5), or only its category (mil_labels.h5) (default: %(default)s)")
    parser.ablations.add_argument("--background_videos", choices=["on", "off"], default="on",
                                  help="also train on the background videos (default: %(default)s)")
    return utils.parse_options(parser)


def train(args, data, device):
    """Trains on data["train"] and keeps the checkpoint of the best validation accuracy; returns the run's results."""
    utils.set_seed(args.seed)
    batches = utils.training_batches(args, data["train"], device)

    config = utils.network_config(args, "weakly", data["train"].sizes)
    network = build_network(args.model_name, config)
    if "initial_weights" in args.released_quirks:
        draw_released_weights(network, "weakly", args.seed)
    network.to(device)

    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr, fused=True)
    decay = dict(milestones=[80, 160], gamma=0.8)
    if args.model_name == "AVEL":
        decay = dict(milestones=avel_milestones(len(batches), args.nb_epoch), gamma=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, **decay)
    train_together(network, optimizer)

    with Run(args, "weakly", config, network, optimizer, schedule, data, steps=len(batches)) as run:
        for epoch in run.epochs():                  # from 0, or from where a stopped run goes on
            network.train()
            for batch in batches.epoch(epoch):      # drawn anew each epoch, on the device
                output = utils.forward(network, batch, args.precision)
                if args.model_name == "AVEL":
                    loss = avel_weakly_supervised_loss(output, batch["video_label"])
                elif args.weak_labels == "tag":
                    category = one_hot(batch["video_label"], data["train"].sizes.num_classes).to(batch["label_share"])
                    loss = weakly_supervised_loss(output, category)
                else:
                    loss = weakly_supervised_loss(output, batch["label_share"])
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
        utils.evaluate_checkpoint(args, "weakly")
        return
    device = utils.select_device(args)
    data = utils.read_data(args, "weakly", ["train", "val", "test"], device)
    results = [train(seed_args, data, device) for seed_args in utils.each_seed(args)]
    utils.report_runs(args, results, data["test"])


if __name__ == "__main__":
    with utils.one_line_errors():
        main()
