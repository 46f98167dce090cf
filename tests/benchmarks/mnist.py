"""The paper's MLP on MNIST: forget each class alone, and five pairs.

    python tests/benchmarks/mnist.py --work /tmp/mnist

Goals: E_F at least 99 %, A_R at most 2.5 points below before, worst retained class at most 6.
`--rule paper --lambdas 1e-3 10` gives the paper's own settings.
"""

from forgetting import forget_each, header, machine, parser, prepared_model, summary

from expunge.config import TrainConfig

REQUESTS = [*((i,) for i in range(10)), (0, 1), (2, 3), (4, 9), (5, 6), (7, 8)]


def main() -> None:
    """Train where there is no model yet, then print the table."""
    options = parser(__doc__ or "", epochs=20).parse_args()
    config = TrainConfig(
        arch="mlp", epochs=options.epochs, schedule="none", t_mix=0.1, seed=options.seed
    )
    model = prepared_model(options.work, "mnist", options.data, config)
    print(f"MNIST, MLP, {options.epochs} epochs, seed {options.seed}; {machine()}\n\n{header()}")
    rows = forget_each(options.work, model, REQUESTS, options.rule, options.lambdas)
    print(summary(rows, 0.99, 0.025))


if __name__ == "__main__":
    main()
