"""The routed experts of a layer, forward and backward, one thread: leanseek's form against three others."""

from __future__ import annotations

from rows import alternate, arguments, publish, repeats, row, seconds_of

# The laptop preset's layer: 8 experts of 128, two of them for each token, hidden size 128.
EXPERTS, PER_TOKEN, HIDDEN, WIDTH = 8, 2, 128, 128
TOKENS = (512, 2048, 8192)
CALLS = 5


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    import torch
    import torch.nn.functional as F

    from leanseek.kernels.experts import experts_reference, routed_experts

    torch.set_num_threads(1)

    def activate(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def grouped_mm(x, weights, experts, gate_up, down):
        flat, order = experts.reshape(-1).sort(stable=True)
        rows = order // PER_TOKEN
        ends = torch.bincount(flat, minlength=EXPERTS).cumsum(0).int()
        hidden = activate(F.grouped_mm(x[rows], gate_up.mT, offs=ends))
        out = F.grouped_mm(hidden, down.mT, offs=ends) * weights.reshape(-1)[order, None].to(x.dtype)
        return torch.zeros_like(x).index_add(0, rows, out)

    def padded_bmm(x, weights, experts, gate_up, down):
        flat, order = experts.reshape(-1).sort(stable=True)
        counts = torch.bincount(flat, minlength=EXPERTS)
        place = torch.arange(len(flat)) - (counts.cumsum(0) - counts)[flat]
        slots = flat * int(counts.max()) + place
        rows = order // PER_TOKEN
        room = x.new_zeros(EXPERTS * int(counts.max()), HIDDEN).index_copy(0, slots, x[rows])
        hidden = activate(torch.bmm(room.view(EXPERTS, -1, HIDDEN), gate_up.mT))
        out = torch.bmm(hidden, down.mT).flatten(0, 1)[slots] * weights.reshape(-1)[order, None].to(x.dtype)
        return torch.zeros_like(x).index_add(0, rows, out)

    def dense(x, weights, experts, gate_up, down):
        share = torch.zeros(len(x), EXPERTS).scatter(1, experts, weights).to(x.dtype)
        hidden = activate(torch.einsum("td,efd->tef", x, gate_up))
        return torch.einsum("tef,edf,te->td", hidden, down, share)

    peers = {"grouped_mm": grouped_mm, "padded bmm": padded_bmm, "all experts dense": dense}
    for dtype in (torch.float32, torch.bfloat16):
        for tokens in TOKENS[:1] if options.quick else TOKENS:
            torch.manual_seed(0)
            x = torch.randn(tokens, HIDDEN).to(dtype).requires_grad_()
            weights = torch.rand(tokens, PER_TOKEN).requires_grad_()
            experts = torch.rand(tokens, EXPERTS).topk(PER_TOKEN).indices
            gate_up = (torch.randn(EXPERTS, 2 * WIDTH, HIDDEN) * 0.1).to(dtype).requires_grad_()
            down = (torch.randn(EXPERTS, HIDDEN, WIDTH) * 0.1).to(dtype).requires_grad_()
            inputs, gradient = (x, weights, gate_up, down), torch.randn(tokens, HIDDEN).to(dtype)
            with torch.no_grad():
                wanted = experts_reference(x.float(), weights, experts, gate_up.float(), down.float())

            def rate(
                function,
                x=x,
                weights=weights,
                experts=experts,
                gate_up=gate_up,
                down=down,
                inputs=inputs,
                gradient=gradient,
            ):
                def both():
                    torch.autograd.grad(function(x, weights, experts, gate_up, down), inputs, gradient)

                both()
                return len(x) / seconds_of(both, CALLS)

            for name, peer in peers.items():
                work = f"routed experts, {tokens} tokens, {str(dtype).removeprefix('torch.')}, against {name}"
                if options.only not in work:
                    continue
                got = peer(x, weights, experts, gate_up, down).float()
                torch.testing.assert_close(got, wanted, atol=0.1 if dtype == torch.bfloat16 else 1e-4, rtol=0.1)
                sides = {"ours": lambda r=rate: r(routed_experts), "peer": lambda r=rate, p=peer: r(p)}
                found = alternate(sides, repeats(options))
                publish("moe", row(work, "tokens/s", found["ours"], found["peer"]), options)


if __name__ == "__main__":
    main()
