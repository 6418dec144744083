"""fp32 products of one thread: torch's default (MKL) against what leanseek chooses here, forward and backward."""

from __future__ import annotations

from rows import alternate, arguments, publish, repeats, row, seconds_of

# (rows, inputs, outputs): the laptop model's, then larger ones.
SHAPES = [(64, 128, 256), (1024, 128, 256), (4096, 128, 384), (4096, 384, 128), (4096, 512, 1536), (1024, 2048, 2048)]
CALLS = 20


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    import torch

    from leanseek.kernels.linear import linear, linear_reference, report

    torch.set_num_threads(1)
    print(f"leanseek multiplies by {report()}")
    for rows, inputs, outputs in SHAPES:
        work = f"linear, {rows} x {inputs} by {inputs} x {outputs}, forward and backward, fp32, 1 thread"
        if options.only not in work:
            continue
        x = torch.randn(rows, inputs, requires_grad=True)
        weight = torch.randn(outputs, inputs, requires_grad=True)
        gradient = torch.randn(rows, outputs)
        flops = 6 * rows * inputs * outputs

        def rate(function, x=x, weight=weight, gradient=gradient, flops=flops):
            def both():
                torch.autograd.grad(function(x, weight), (x, weight), gradient)

            both()
            return flops / seconds_of(both, CALLS) / 1e9

        found = alternate(
            {"ours": lambda r=rate: r(linear), "peer": lambda r=rate: r(linear_reference)}, repeats(options)
        )
        publish("linear", row(work, "GFLOP/s", found["ours"], found["peer"]), options)


if __name__ == "__main__":
    main()
