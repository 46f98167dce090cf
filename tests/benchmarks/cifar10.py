"""CIFAR-10: forget each of the ten classes. ResNet-20 by default, the paper's ResNet-18 on a GPU.

    python tests/benchmarks/cifar10.py --work /tmp/cifar10
    python tests/benchmarks/cifar10.py --work /tmp/cifar10-r18 --arch resnet18-cifar --epochs 200

Goals: E_F at least 95 %, A_R at most 2 points below before. Reads `cifar10-jpeg.tar` in the data
folder: a tar of train/<class>/*.jpg and test/<class>/*.jpg.
"""

from forgetting import forget_each, header, machine, parser, prepared_model, summary

from expunge.config import TrainConfig


def main() -> None:
    """Train where there is no model yet, then print the table."""
    options = parser(__doc__ or "", epochs=8)
    options.add_argument("--arch", default="resnet20")
    options.add_argument("--lr", type=float, default=0.05)
    options.add_argument("--classes", type=int, nargs="*", default=list(range(10)))
    given = options.parse_args()
    config = TrainConfig(
        arch=given.arch, epochs=given.epochs, learning_rate=given.lr, t_mix=0.3, seed=given.seed
    )
    source = f"folder:{given.data / 'cifar10-jpeg.tar'}"
    model = prepared_model(given.work, source, given.data, config)
    print(f"CIFAR-10, {given.arch}, {given.epochs} epochs, seed {given.seed}; {machine()}")
    print(f"\n{header()}")
    requests = [(index,) for index in given.classes]
    rows = forget_each(given.work, model, requests, given.rule, given.lambdas)
    print(summary(rows, 0.95, 0.02))


if __name__ == "__main__":
    main()
