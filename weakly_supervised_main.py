"""Trains or evaluates PSP with labels for whole videos only (weakly supervised).

    python weakly_supervised_main.py --model_name PSP --threshold=0.095 --train
    python weakly_supervised_main.py --model_name PSP --trained_model_path ./model/PSP_weakly.pt
"""
import torch
from torch.nn.functional import one_hot

import utils
from psp_model import avel_weakly_supervised_loss, weakly_supervised_loss

LEARNING_RATE_DECAY = dict(gamma=0.8, milestones=[80, 160])      # x 0.8 after these epochs


def options():
    parser = utils.main_options(__doc__, "weakly")
    parser.ablations.add_argument("--weak_labels", choices=["share", "tag"], default="share",
                                  help="training target: the share of event and background in each video (prob_label.h5), or "
                                       "only its category (mil_labels.h5) (default: %(default)s)")
    parser.ablations.add_argument("--background_videos", choices=["on", "off"], default="on",
                                  help="train on the background videos, too (default: %(default)s)")
    utils.add_file_option(parser.data, "--dir_labels", "mil_labels.h5", "event category of each video")
    utils.add_file_option(parser.data, "--prob_dir_labels", "prob_label.h5", "share of each label in each video: the training target")
    utils.add_file_option(parser.data, "--dir_labels_gt", "right_labels.h5", "segment labels, to score predictions")
    utils.add_file_option(parser.data, "--dir_video_bg", "visual_feature_noisy.h5", "visual features of background videos")
    utils.add_file_option(parser.data, "--dir_audio_bg", "audio_feature_noisy.h5", "audio features of background videos")
    utils.add_file_option(parser.data, "--dir_labels_bg", "labels_noisy.h5", "label of the background videos")
    return utils.parse_options(parser)


def given_files(args):
    """Paths that the options give, by the names of dataset.AVE_FILES."""
    return dict(visual=args.dir_video, audio=args.dir_audio, labels=args.dir_labels_gt,
                order_train=args.dir_order_train, order_val=args.dir_order_val, order_test=args.dir_order_test,
                video_labels=args.dir_labels, label_share=args.prob_dir_labels,
                visual_bg=args.dir_video_bg, audio_bg=args.dir_audio_bg, labels_bg=args.dir_labels_bg)


def train(args, data, device):
    utils.set_seed(args.seed)

    network_options = utils.network_options(args, "weakly", data["train"].sizes)
    network = utils.NETWORKS[args.model_name](**network_options).to(device)

    def loss_function(output, batch):
        if args.model_name == "AVEL":
            return avel_weakly_supervised_loss(output, batch["video_label"])
        if args.weak_labels == "tag":
            return weakly_supervised_loss(output, one_hot(batch["video_label"], output.logits.shape[-1]).float())
        return weakly_supervised_loss(output, batch["label_share"])

    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr, fused=True)
    decay = utils.avel_decay(args, data) if args.model_name == "AVEL" else LEARNING_RATE_DECAY
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, **decay)

    return utils.train(args, "weakly", network, network_options, loss_function, optimizer, schedule, data)


def main():
    args = options()
    if args.train:
        device = utils.select_device(args)
        data = utils.read_data(args, given_files(args), ["train", "val", "test"], device, weak_training=True,
                               background_videos=args.background_videos == "on")
        utils.train_each_seed(args, data, device, train)
    else:
        utils.evaluate_checkpoint(args, given_files(args), "weakly")


if __name__ == "__main__":
    utils.run_script(main)
