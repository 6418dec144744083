"""FP8 products against bf16: the laptop model's pretraining loss from the same start on the same batches.

V3's report states a relative difference below 0.25%. One row a seed: the relative difference of the losses' means over
the last hundred steps; `samples` has the loss of every tenth step. FP8 is emulated: nothing here is about speed.
"""

from __future__ import annotations

from dataclasses import replace

from rows import arguments, publish, row


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    import torch

    from leanseek.checkpoint.directory import empty_model
    from leanseek.data.batches import TokenStream
    from leanseek.data.tokens import tokenise, train_tokenizer
    from leanseek.log import progress
    from leanseek.model.config import load_preset
    from leanseek.model.initialise import initialise
    from leanseek.settings import load_recipe
    from leanseek.train.balance import update_bias
    from leanseek.train.objectives.next_token import NextToken
    from leanseek.train.optimisers import Optimiser
    from leanseek.train.precision import fp8
    from leanseek.train.schedules import lr_factor

    steps = 20 if options.quick else options.steps
    for seed in options.seeds:
        recipe = load_recipe("laptop", {"seed": seed, "data.documents": 2000 if options.quick else 100_000})
        settings = recipe.pretrain.model_copy(update={"steps": steps})
        config = load_preset(recipe.model)
        tokenizer = train_tokenizer(recipe, config.vocab_size)
        corpus = tokenise(recipe, tokenizer)
        objective = NextToken(settings.mtp_weight, settings.balance_loss)

        def losses(precision: str) -> list[float]:
            stream = TokenStream(corpus.train, recipe.data.sequence_tokens, settings.batch_sequences, seed)  # noqa: B023
            model = initialise(empty_model(config, dtype="bfloat16"), seed).train()  # noqa: B023
            optimiser = Optimiser(model, settings.optimiser)  # noqa: B023
            found = []
            with progress(steps, precision) as bar:
                for step in range(steps):
                    batch = replace(stream.batch(step), mtp=step % settings.mtp_every == 0)  # noqa: B023
                    if precision == "fp8":
                        with fp8(model):
                            loss = objective(model, batch)  # noqa: B023
                            loss.total.backward()
                    else:
                        loss = objective(model, batch)  # noqa: B023
                        loss.total.backward()
                    optimiser.clip()
                    optimiser.step(lr_factor(step, steps, settings))  # noqa: B023
                    optimiser.zero_grad()
                    update_bias(model, loss.counts, settings.balance_rate)  # noqa: B023
                    found.append(loss.metrics["loss"])
                    bar.advance(note=f"loss {found[-1]:.4f}")
            return found

        torch.set_num_threads(1)
        ours, peer = losses("fp8"), losses("bf16")
        last = min(100, steps // 2)
        means = [sum(found[-last:]) / last for found in (ours, peer)]
        publish(
            "fp8",
            row(
                f"laptop pretraining, {steps} steps, mean loss of the last {last}, seed {seed}",
                "nats",
                [means[0]],
                [means[1]],
                less_is_better=True,
                relative_difference=means[0] / means[1] - 1,
                limit=0.0025,
                every_tenth={"fp8": ours[::10], "bf16": peer[::10]},
            ),
            options,
        )


if __name__ == "__main__":
    main()
