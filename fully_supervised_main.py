"""Trains or evaluates PSP with a label for every segment (fully supervised).

    python fully_supervised_main.py --model_name PSP --threshold=0.099 --train
    python fully_supervised_main.py --model_name PSP --trained_model_path ./model/PSP_fully.pt
"""
import torch

import utils
from psp_model import avel_fully_supervised_loss, fully_supervised_loss

LEARNING_RATE_DECAY = dict(gamma=0.8, milestones=[60, 120])      # x 0.8 after these epochs


def options():
    parser = utils.main_options(__doc__, "fully")
    parser.training.add_argument("--LAMBDA", type=utils.number(float, 0), default=100,
                                 help="weight of the audio-visual pair similarity loss L_avps (default: %(default)s)")
    utils.add_file_option(parser.data, "--dir_labels", "right_labels.h5", "segment labels")
    return utils.parse_options(parser)


def given_files(args):
    """Paths that the options give, by the names of dataset.AVE_FILES."""
    return dict(visual=args.dir_video, audio=args.dir_audio, labels=args.dir_labels,
                order_train=args.dir_order_train, order_val=args.dir_order_val, order_test=args.dir_order_test)


def train(args, data, device):
    utils.set_seed(args.seed)

    network_options = utils.network_options(args, "fully", data["train"].sizes)
    network = utils.NETWORKS[args.model_name](**network_options).to(device)

    def loss_function(output, batch):
        if args.model_name == "AVEL":
            return avel_fully_supervised_loss(output, batch["labels"])
        return fully_supervised_loss(output, batch["labels"], args.LAMBDA, target=batch.get("avps_target"))

    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr, fused=True)
    decay = utils.avel_decay(args, data) if args.model_name == "AVEL" else LEARNING_RATE_DECAY
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, **decay)

    return utils.train(args, "fully", network, network_options, loss_function, optimizer, schedule, data)


def main():
    args = options()
    if args.train:
        device = utils.select_device(args)
        data = utils.read_data(args, given_files(args), ["train", "val", "test"], device)
        utils.train_each_seed(args, data, device, train)
    else:
        utils.evaluate_checkpoint(args, given_files(args), "fully")


if __name__ == "__main__":
    utils.run_script(main)
